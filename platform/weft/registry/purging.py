"""Removes the files of versions that were deleted long enough ago. Knows no HTTP.

A digest is marked before its files go and unmarked after, so that nobody stores the same bytes
meanwhile and a crash in between is made up for by the next purge.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import SYSTEM, Actor, Target, record
from weft.db.database import Database
from weft.db.ids import now
from weft.registry.maintenance_repository import MaintenanceRepository
from weft_adapters.store import AdapterStore

logger = logging.getLogger("weft.registry")


@dataclass(frozen=True, slots=True)
class PurgeResult:
    """`num_deferred` digests are in use by requests that were admitted before, or could not be
    removed from the store; the next purge tries them again."""

    num_versions: int = 0
    num_digests: int = 0
    num_deferred: int = 0


class Purger:
    """`digests_in_use` are those that the engine runs or waits for; `on_purged` has one leave its
    tiers."""

    def __init__(
        self,
        database: Database,
        store: AdapterStore,
        digests_in_use: Callable[[], Awaitable[Collection[str]]],
        on_purged: Callable[[str], Awaitable[None]],
    ) -> None:
        self._database, self._store = database, store
        self._digests_in_use, self._on_purged = digests_in_use, on_purged
        # a second one could remove what was stored after the first had unmarked it
        self._lock = asyncio.Lock()

    async def purge(self, retention_s: float, actor: Actor = SYSTEM) -> PurgeResult:
        """Purge what was archived at least `retention_s` ago. Idempotent; one process may do so."""
        async with self._lock:
            return await self._purge(retention_s, actor)

    async def _remove(self, digest: str) -> None:
        await asyncio.to_thread(self._store.delete, digest)
        await self._on_purged(digest)

    async def _purge(self, retention_s: float, actor: Actor) -> PurgeResult:
        before = now() - int(retention_s)
        async with self._database.writing() as session:
            repository = MaintenanceRepository(session)
            await repository.archive_of_deleted_tenants(now())
            num_versions = await repository.purge_without_files(before)
            digests = await repository.list_purgeable(before)
            if actor.kind != "system" or num_versions:
                changes = {"retention_s": retention_s, "num_versions_without_files": num_versions}
                await record(session, actor, "adapters.purged", Target("adapters"), changes)
        num_digests = num_deferred = 0
        for digest in digests:
            async with self._database.writing() as session:
                repository = MaintenanceRepository(session)
                if await repository.is_needed(digest, before):
                    num_versions += await _end(session, digest, before, actor)
                    continue
                if digest in await self._digests_in_use():
                    num_deferred += 1
                    continue
                await repository.begin_purge(digest, now())
            try:
                await self._remove(digest)
            except Exception:  # it stays marked; the others need not wait for it
                logger.exception("the files of %s could not be removed", digest)
                num_deferred += 1
                continue
            async with self._database.writing() as session:
                num_versions += await _end(session, digest, before, actor)
            num_digests += 1
        if num_versions:
            logger.info("%d versions purged, files of %d digests", num_versions, num_digests)
        return PurgeResult(num_versions, num_digests, num_deferred)


async def _end(session: AsyncSession, digest: str, before: int, actor: Actor) -> int:
    """Settle the versions, of whatever tenants, that had these bytes."""
    num_versions = await MaintenanceRepository(session).end_purge(digest, before)
    changes = {"num_versions": num_versions}
    await record(session, actor, "adapter.digest.purged", Target(digest), changes)
    return num_versions
