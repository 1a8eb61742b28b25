"""From received files to a version that can be called, so that a crash at any point loses nothing.

    judge      the files alone: a report, and the digest if they are accepted
    reserve    one transaction: the version `validating` with its digest, or the one there is
    put        the store
    settle     one transaction: `ready`, and the alias `default` moved to it

What is being stored or removed is known by rows alone: a crash before `reserve` leaves a temporary
folder, one before `settle` a row in `validating`, which `weft.registry.recovery` takes care of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import SYSTEM, Actor
from weft.db.database import Database
from weft.db.scope import Owner
from weft.errors import (
    AdapterInvalidError,
    ConflictError,
    InvalidRequestError,
    OverloadedError,
)
from weft.registry.aliases import follow_newest
from weft.registry.intake import ReceivedAdapter
from weft.registry.lifecycle import (
    PENDING,
    VersionGoneError,
    create_version,
    describe,
    find_pending,
    record_created,
    reject,
)
from weft.registry.maintenance_repository import MaintenanceRepository
from weft.registry.models import Adapter, AdapterVersion, VersionState
from weft.registry.names import MERGED_NAME
from weft.registry.own_tokens import TokenizerRefusedError, take_own_tokens
from weft.registry.quota import Quota, check_room
from weft.registry.repository import RegistryRepository
from weft.registry.service import ServedBase, get_adapter
from weft_adapters.faults import Fault
from weft_adapters.sites import BaseSpec
from weft_adapters.store import AdapterStore
from weft_adapters.validation import ValidationReport, validate

# while others store or remove the same bytes
_POLL_S = 0.05
_MAX_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of a submission. `status_code`: 201 new, 200 there already, 202 to come."""

    adapter: Adapter
    version: AdapterVersion
    status_code: int


# is called in the transaction after which an outcome is certain
Keep = Callable[[AsyncSession, Published], Awaitable[None]]


async def keep_nothing(_session: AsyncSession, _published: Published) -> None:
    """Nobody asks for the outcome again."""


class VersionRefusedError(Exception):
    """An import cannot become ready; `report` is what its version will say."""

    def __init__(self, report: ValidationReport) -> None:
        super().__init__(report.faults[0].message)
        self.report = report

    @classmethod
    def of(cls, code: str, message: str) -> VersionRefusedError:
        return cls(ValidationReport(ok=False, faults=(Fault(code, message),)))


class Publisher:
    """Judges, stores and registers adapters for the served base. `base_dir`: where its tokenizer
    is, which an adapter's may add to; None where no adapter comes with one. `on_ready` is called
    with each version that has become ready."""

    def __init__(
        self,
        database: Database,
        store: AdapterStore,
        base: ServedBase,
        spec: BaseSpec,
        max_rank: int,
        quota: Quota,
        dtype: str = "float32",
        base_dir: Path | None = None,
    ) -> None:
        self._database, self._store = database, store
        self.base, self._spec, self._max_rank, self.quota = base, spec, max_rank, quota
        self._dtype, self._base_dir = dtype, base_dir
        self.on_ready: Callable[[AdapterVersion], None] = lambda version: None

    async def judge(self, files: ReceivedAdapter) -> tuple[ReceivedAdapter, ValidationReport]:
        """The files as they are to be stored, and what is said of them: without a digest where they
        are refused."""
        if self._base_dir is not None:
            try:
                files = await take_own_tokens(files, self._base_dir)
            except TokenizerRefusedError as error:
                fault = Fault("invalid_tokenizer", str(error))
                return files, ValidationReport(ok=False, faults=(fault,))
        return files, await asyncio.to_thread(
            validate,
            files.config_bytes,
            files.tensors_path,
            self._spec,
            max_rank=self._max_rank,
            declared_base=self.base.name,
            dtype=self._dtype,
        )

    async def publish(
        self,
        owner: Owner,
        name: str,
        files: ReceivedAdapter,
        keep: Keep = keep_nothing,
        source: Mapping[str, object] = MappingProxyType({"type": "multipart"}),
        actor: Actor = SYSTEM,
    ) -> Published:
        """Make the files the newest version; AdapterInvalidError with every fault. A new version's
        outcome is given to `keep`; where the bytes are there already nothing comes of it."""
        files, report = await self.judge(files)
        if report.digest is None:
            raise AdapterInvalidError(
                f"The adapter cannot be served: {report.faults[0].message}",
                details=[fault.to_dict() for fault in report.faults],
            )
        deadline_s = time.monotonic() + _MAX_WAIT_S
        while True:
            async with self._database.writing() as session:
                published = await self._try_reserve(
                    session, owner, name, files, report, source, actor
                )
            if published is not None:
                break
            await _wait(deadline_s)
        if published.status_code == 200:  # what the store has may have been damaged since
            await self._put(report.digest, files)
            return published
        try:
            return await self._store_and_settle(owner, published.version, files, keep)
        except VersionGoneError as error:
            raise ConflictError(
                f"'{name}' was deleted while its files came.", code="version_deleted"
            ) from error

    async def _try_reserve(
        self,
        session: AsyncSession,
        owner: Owner,
        name: str,
        files: ReceivedAdapter,
        report: ValidationReport,
        source: Mapping[str, object],
        actor: Actor,
    ) -> Published | None:
        """None while the same bytes are being stored or removed."""
        assert report.digest is not None, "only accepted files are registered"
        adapter = await get_adapter(session, owner, name)
        if source["type"] != "merge":
            check_takes_uploads(adapter)
        repository = RegistryRepository(session, owner)
        existing = await repository.find_version_by_digest(adapter, report.digest)
        if existing is not None and existing.state != VersionState.READY:
            return None
        if await MaintenanceRepository(session).is_purging(report.digest):
            return None
        if existing is not None:
            return Published(adapter, existing, 200)
        await check_room(repository, self.quota, report.num_bytes)
        number = await repository.next_number(adapter)
        version = create_version(adapter, self.base, number, dict(source))
        describe(version, files, report)
        repository.add(version)
        await repository.flush()
        await record_created(session, actor, adapter, version)
        return Published(adapter, version, 201)

    async def publish_import(self, owner: Owner, version_id: str, files: ReceivedAdapter) -> str:
        """Make the files the version that was promised for them; gives its digest.

        VersionRefusedError, or VersionGoneError where it was deleted meanwhile.
        """
        await self._advance(owner, version_id)
        files, report = await self.judge(files)
        if report.digest is None:
            raise VersionRefusedError(report)
        deadline_s = time.monotonic() + _MAX_WAIT_S
        while True:
            async with self._database.writing() as session:
                version = await self._try_claim(session, owner, version_id, files, report)
            if version is not None:
                break
            await _wait(deadline_s)
        await self._store_and_settle(owner, version, files)
        return report.digest

    async def _advance(self, owner: Owner, version_id: str) -> None:
        async with self._database.writing() as session:
            version = await find_pending(RegistryRepository(session, owner), version_id)
            version.state = VersionState.VALIDATING

    async def _try_claim(
        self,
        session: AsyncSession,
        owner: Owner,
        version_id: str,
        files: ReceivedAdapter,
        report: ValidationReport,
    ) -> AdapterVersion | None:
        """None while the same bytes are being stored or removed."""
        assert report.digest is not None, "only accepted files are registered"
        repository = RegistryRepository(session, owner)
        version = await find_pending(repository, version_id)
        if version.digest not in (None, report.digest):
            # it was stored under the other digest before a crash; the row leads to those files
            raise VersionRefusedError.of("source_changed", "The source changed while it was read.")
        adapter = await repository.find_adapter_by_id(version.adapter_id)
        assert adapter is not None, "its versions would have been archived"
        existing = await repository.find_version_by_digest(adapter, report.digest)
        if existing is not None and existing.id != version.id:
            if existing.state != VersionState.READY:
                return None
            raise VersionRefusedError.of(
                "duplicate", f"The bytes are those of version {existing.number}."
            )
        if await MaintenanceRepository(session).is_purging(report.digest):
            return None
        # its row counts already, its bytes do not
        await check_room(repository, self.quota, report.num_bytes, num_versions=0)
        describe(version, files, report)
        return version

    async def _store_and_settle(
        self,
        owner: Owner,
        version: AdapterVersion,
        files: ReceivedAdapter,
        keep: Keep = keep_nothing,
    ) -> Published:
        assert version.digest is not None, "it was reserved with its digest"
        try:
            await self._put(version.digest, files)
            async with self._database.writing() as session:
                repository = RegistryRepository(session, owner)
                settled = await find_pending(repository, version.id)
                adapter = await repository.find_adapter_by_id(settled.adapter_id)
                assert adapter is not None, "its versions would have been archived"
                settled.state = VersionState.READY
                if adapter.name != MERGED_NAME:  # nobody calls that by its name
                    await follow_newest(repository, adapter, settled)
                published = Published(adapter, settled, 201)
                await keep(session, published)
            self.on_ready(settled)
            return published
        except VersionGoneError:
            raise
        except Exception:  # at the end of the process, the next start decides
            fault = Fault("not_stored", "The server could not store the files.")
            await self.reject(owner, version.id, ValidationReport(ok=False, faults=(fault,)))
            raise

    async def _put(self, digest: str, files: ReceivedAdapter) -> None:
        await asyncio.to_thread(self._store.put, digest, files.config_bytes, files.tensors_path)

    async def reject(self, owner: Owner, version_id: str, report: ValidationReport) -> None:
        """Settle a version that will not be ready."""
        async with self._database.writing() as session:
            repository = RegistryRepository(session, owner)
            version = await repository.find_version_by_id(version_id)
            if version is not None and version.state in PENDING:
                reject(version, report)


def check_takes_uploads(adapter: Adapter) -> None:
    """InvalidRequestError for the adapter whose versions the server makes itself."""
    if adapter.name == MERGED_NAME:
        raise InvalidRequestError(f"'{adapter.name}' takes no uploads: its versions are merged.")


async def _wait(deadline_s: float) -> None:
    if time.monotonic() > deadline_s:
        raise OverloadedError("The same bytes are still being stored or removed; try again.")
    await asyncio.sleep(_POLL_S)
