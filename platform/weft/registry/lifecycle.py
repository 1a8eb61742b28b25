"""The row of a version from its making to ready or rejected. In the caller's transaction."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Actor, Target, record
from weft.db.ids import create_id, now
from weft.registry.intake import ReceivedAdapter
from weft.registry.models import Adapter, AdapterVersion, VersionState
from weft.registry.repository import RegistryRepository
from weft.registry.service import ServedBase
from weft_adapters.validation import ValidationReport

PENDING = (VersionState.UPLOADING, VersionState.VALIDATING)


class VersionGoneError(Exception):
    """Its version, or adapter, was deleted meanwhile."""


def reject(version: AdapterVersion, report: ValidationReport) -> None:
    version.state = VersionState.REJECTED
    version.report = report.to_dict()


async def find_pending(repository: RegistryRepository, version_id: str) -> AdapterVersion:
    version = await repository.find_version_by_id(version_id)
    if version is None or version.state not in PENDING:
        raise VersionGoneError
    return version


def create_version(
    adapter: Adapter, base: ServedBase, number: int, source: dict[str, object]
) -> AdapterVersion:
    """A version whose bytes are to come."""
    return AdapterVersion(
        id=create_id("ver"),
        tenant_id=adapter.tenant_id,
        adapter_id=adapter.id,
        number=number,
        digest=None,
        base_digest=base.digest,
        state=VersionState.UPLOADING,
        num_bytes=0,
        ranks=[],
        report={},
        source=source,
        card={},
        is_pinned=False,
        num_attempts=0,
        created_at=now(),
        archived_at=None,
    )


async def record_created(
    session: AsyncSession, actor: Actor, adapter: Adapter, version: AdapterVersion
) -> None:
    """Tell the audit trail of a version that was asked for."""
    changes = {
        "adapter": adapter.name,
        "version": version.number,
        "digest": version.digest,
        "source": version.source,
    }
    target = Target(version.id, version.tenant_id)
    await record(session, actor, "adapter.version.created", target, changes)


def describe(version: AdapterVersion, files: ReceivedAdapter, report: ValidationReport) -> None:
    version.state = VersionState.VALIDATING
    version.digest = report.digest
    version.num_bytes = report.num_bytes
    version.ranks = list(report.ranks)
    version.report = report.to_dict()
    version.card = dict(files.card)
