"""Versions whose files the server gets by itself, beside the requests that asked for them.

What is to be done is in the table of versions, so a crash loses no import: it begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import SYSTEM, Actor
from weft.db.database import Database
from weft.db.scope import Owner, TenantOwner
from weft.errors import InvalidRequestError, RateLimitError, WeftError
from weft.registry.intake import ReceivedAdapter, temporary_folder
from weft.registry.lifecycle import (
    PENDING,
    VersionGoneError,
    create_version,
    record_created,
)
from weft.registry.maintenance_repository import MaintenanceRepository
from weft.registry.models import AdapterVersion, VersionState
from weft.registry.publishing import (
    Keep,
    Published,
    Publisher,
    VersionRefusedError,
    check_takes_uploads,
    keep_nothing,
)
from weft.registry.quota import check_room
from weft.registry.repository import RegistryRepository
from weft.registry.service import get_adapter
from weft.registry.sources import SOURCE_TYPES, AnySource, Source, SourceError
from weft_adapters.faults import Fault
from weft_adapters.validation import ValidationReport

# imports that other processes have promised
_POLL_S = 1.0
logger = logging.getLogger("weft.registry")

_SOURCE: TypeAdapter[Source] = TypeAdapter(AnySource)


class SourceReader(Protocol):
    """Where files come from."""

    async def check(self, session: AsyncSession, owner: Owner, source: Source) -> None:
        """SourceError for one that may not be read, before anything is promised."""

    async def read(self, owner: Owner, source: Source, folder: Path) -> None:
        """Write the files into `folder` under their own names; SourceError."""

    async def on_ready(self, owner: Owner, source: Source) -> None:
        """The version is ready: what was kept for it is not needed any more."""


class Importer:
    """At most `num_at_once` imports are under way, fairly between the tenants."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        reader: SourceReader,
        folder: Path,
        on_ready: Callable[[str], None],
        num_at_once: int = 2,
    ) -> None:
        self._database, self._publisher, self._reader = database, publisher, reader
        self._folder, self._on_ready, self._num_at_once = folder, on_ready, num_at_once
        self._wake = asyncio.Event()
        self._running: dict[str, AdapterVersion] = {}

    @property
    def num_running(self) -> int:
        return len(self._running)

    async def submit(
        self,
        owner: Owner,
        name: str,
        source: Source,
        keep: Keep = keep_nothing,
        actor: Actor = SYSTEM,
    ) -> Published:
        """Promise a version; its state says what becomes of it, and `keep` gets the promise.
        InvalidRequestError for a source that is not allowed."""
        async with self._database.writing() as session:
            published = await self._promise(session, owner, name, source, actor)
            await keep(session, published)
        self._wake.set()
        return published

    async def _promise(
        self,
        session: AsyncSession,
        owner: Owner,
        name: str,
        source: Source,
        actor: Actor,
    ) -> Published:
        adapter = await get_adapter(session, owner, name)
        check_takes_uploads(adapter)
        repository = RegistryRepository(session, owner)
        try:
            await self._reader.check(session, owner, source)
        except SourceError as error:
            raise InvalidRequestError(error.message, param="source", code=error.code) from error
        quota = self._publisher.quota
        if await repository.count_state(*PENDING) >= quota.max_imports:
            raise RateLimitError(
                f"{quota.max_imports} imports are under way already; wait for one to end.",
                retry_after_s=10,
            )
        await check_room(repository, quota, 0)
        number = await repository.next_number(adapter)
        version = create_version(adapter, self._publisher.base, number, source.model_dump())
        repository.add(version)
        await repository.flush()
        await record_created(session, actor, adapter, version)
        return Published(adapter, version, 202)

    async def run(self) -> None:
        """Work until cancelled; what is cancelled begins anew at the next start."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                for version in await self._due():
                    self._running[version.id] = version
                    group.create_task(self._import(version), name=f"import-{version.id}")
                await self._wait()

    async def _wait(self) -> None:
        """Until something is due: of this process at once, of others by asking."""
        if self._database.is_sqlite:
            await self._wake.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await self._wake.wait()

    async def _due(self) -> Sequence[AdapterVersion]:
        """Those to begin with now: of the tenants with the fewest under way, the oldest."""
        async with self._database.reading() as session:
            pending = await MaintenanceRepository(session).list_pending()
        waiting = [
            version
            for version in pending
            if version.id not in self._running
            and version.state == VersionState.UPLOADING
            and version.source["type"] in SOURCE_TYPES
        ]
        num_running = Counter(version.tenant_id for version in self._running.values())
        chosen: list[AdapterVersion] = []
        while waiting and len(self._running) + len(chosen) < self._num_at_once:
            version = min(waiting, key=lambda version: (num_running[version.tenant_id], version.id))
            waiting.remove(version)
            num_running[version.tenant_id] += 1
            chosen.append(version)
        return chosen

    async def _import(self, version: AdapterVersion) -> None:
        owner = TenantOwner(version.tenant_id)
        try:
            refusal = await self._try_import(owner, version)
            if refusal is not None:
                await self._publisher.reject(owner, version.id, refusal)
        except Exception:  # of the database: the next start finds the version as it is
            logger.exception("the import of version %s could not be settled", version.id)
        finally:
            del self._running[version.id]
            self._wake.set()

    async def _try_import(self, owner: Owner, version: AdapterVersion) -> ValidationReport | None:
        """None when the version is ready, or gone; else why it is refused."""
        source = _SOURCE.validate_python(version.source)
        try:
            async with temporary_folder(self._folder) as folder:
                await self._reader.read(owner, source, folder)
                files = await asyncio.to_thread(ReceivedAdapter.in_folder, folder)
                digest = await self._publisher.publish_import(owner, version.id, files)
            self._on_ready(digest)
            await self._reader.on_ready(owner, source)
        except VersionGoneError:
            return None
        except VersionRefusedError as error:
            return error.report
        except SourceError as error:
            return _refusal(error.code, error.message)
        except WeftError as error:  # of the tenant's quota, for example
            return _refusal(error.code or error.type, error.message)
        except Exception:
            logger.exception("version %s could not be imported", version.id)
            return _refusal("internal_error", "The server had an error; import it again.")
        return None


def _refusal(code: str, message: str) -> ValidationReport:
    return ValidationReport(ok=False, faults=(Fault(code, message),))
