"""The merged adapters that a tenant has: found by what they were made of, dropped when others are
used more. Knows no merging."""

from __future__ import annotations

import time
from dataclasses import dataclass

from weft.db.database import Database
from weft.db.ids import create_id, now
from weft.db.scope import Owner
from weft.registry.merged_repository import MergedRepository
from weft.registry.models import Adapter, AdapterVersion, VersionState
from weft.registry.names import MERGED_NAME
from weft.registry.repository import RegistryRepository
from weft.registry.service import ServedBase, archive

DerivedKey = tuple[str, str]  # (tenant, derived digest)


@dataclass(frozen=True, slots=True)
class _Known:
    """Which version a recipe is, also where it was first made by another recipe with the same
    outcome, and when a request asked for it (monotonic)."""

    version_id: str
    used_s: float


class KeptMerges:
    """Of one base; a tenant keeps `max_kept`, those used last."""

    def __init__(self, database: Database, base: ServedBase, max_kept: int) -> None:
        self._database, self._base, self._max_kept = database, base, max_kept
        self._known: dict[DerivedKey, _Known] = {}

    def note_use(self, owner: Owner, derived_digest: str, version: AdapterVersion) -> None:
        """A request asked for it."""
        self._known[owner.tenant_id, derived_digest] = _Known(version.id, time.monotonic())

    async def find(self, owner: Owner, derived_digest: str) -> AdapterVersion | None:
        """The version that a recipe is, where it was made and is there."""
        async with self._database.reading() as session:
            known = self._known.get((owner.tenant_id, derived_digest))
            if known is not None:
                repository = RegistryRepository(session, owner)
                version = await repository.find_version_by_id(known.version_id)
                if version is not None and version.state == VersionState.READY:
                    return version
            merged = MergedRepository(session, owner)
            return await merged.find(derived_digest, self._base.digest)

    async def ensure_adapter(self, owner: Owner) -> None:
        """Have the adapter whose versions they are."""
        async with self._database.writing() as session:
            repository = RegistryRepository(session, owner)
            if await repository.find_adapter(MERGED_NAME) is None:
                repository.add(
                    Adapter(
                        id=create_id("adp"),
                        tenant_id=owner.tenant_id,
                        name=MERGED_NAME,
                        base_model=self._base.name,
                        description="What requests with merged_adapters made; each can be deleted.",
                        tags={},
                        created_at=now(),
                        deleted_at=None,
                    )
                )

    async def drop_least_used(self, owner: Owner, newest: AdapterVersion) -> None:
        """What was last used before the last start is the first to go."""
        own = {key: known for key, known in self._known.items() if key[0] == owner.tenant_id}
        used_s = {known.version_id: known.used_s for known in own.values()}
        async with self._database.writing() as session:
            kept = await MergedRepository(session, owner).list_ready()
            others = sorted(
                (version for version in kept if version.id != newest.id),
                key=lambda version: (used_s.get(version.id, 0.0), version.number),
            )
            dropped = others[: max(0, len(kept) - self._max_kept)]
            for version in dropped:
                archive(version)
                version.archived_at = 0  # it can be made again: no retention time
        left = {version.id for version in kept} - {version.id for version in dropped}
        for key, known in own.items():
            if known.version_id not in left:
                del self._known[key]
