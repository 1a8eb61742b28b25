"""Queries across tenants: what is to be taken up after a start, swept, and purged."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, delete, not_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import unscoped
from weft.registry.models import (
    AdapterAlias,
    AdapterVersion,
    PurgingDigest,
    VersionState,
)
from weft.tenancy.models import Tenant

_PENDING = (VersionState.UPLOADING, VersionState.VALIDATING)
_FILES_ARE_SHARED = "the same bytes of two tenants are stored once"
_UPKEEP = "upkeep is for all tenants"
# none of the rows that are changed together is in the session
_IN_BULK = {"synchronize_session": False}


class MaintenanceRepository:
    """All tenants' rows in one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def list_pending(self) -> Sequence[AdapterVersion]:
        """Versions that are neither ready nor rejected, the oldest first."""
        statement = (
            select(AdapterVersion)
            .where(AdapterVersion.state.in_(_PENDING))
            .order_by(AdapterVersion.id)
        )
        return (await self._session.scalars(unscoped(statement, _UPKEEP))).all()

    async def list_pinned(self, base_digest: str) -> Sequence[str]:
        """Digests that some tenant has pinned."""
        statement = select(AdapterVersion.digest).where(
            AdapterVersion.is_pinned.is_(True),
            AdapterVersion.state == VersionState.READY,
            AdapterVersion.base_digest == base_digest,
        )
        found = (await self._session.scalars(unscoped(statement, _UPKEEP))).all()
        return sorted({digest for digest in found if digest is not None})

    async def is_shared(self, version: AdapterVersion) -> bool:
        """Another tenant has the same bytes."""
        statement = select(AdapterVersion.id).where(
            AdapterVersion.digest == version.digest,
            AdapterVersion.tenant_id != version.tenant_id,
            AdapterVersion.state == VersionState.READY,
        )
        found = await self._session.scalar(unscoped(statement, _FILES_ARE_SHARED).limit(1))
        return found is not None

    async def archive_of_deleted_tenants(self, at: int) -> None:
        gone = select(Tenant.id).where(Tenant.deleted_at.is_not(None))
        await self._session.execute(
            unscoped(delete(AdapterAlias).where(AdapterAlias.tenant_id.in_(gone)), _UPKEEP),
            execution_options=_IN_BULK,
        )
        statement = (
            update(AdapterVersion)
            .where(
                AdapterVersion.tenant_id.in_(gone),
                AdapterVersion.state.in_((VersionState.READY, *_PENDING)),
            )
            .values(state=VersionState.ARCHIVED, archived_at=at, is_pinned=False)
        )
        await self._session.execute(unscoped(statement, _UPKEEP), execution_options=_IN_BULK)

    async def list_purgeable(self, before: int) -> Sequence[str]:
        """Digests of versions that are over, and of files whose removal was begun."""
        over = select(AdapterVersion.digest).where(
            _is_over(before), AdapterVersion.digest.is_not(None)
        )
        found = (await self._session.scalars(unscoped(over, _UPKEEP))).all()
        begun = (await self._session.scalars(unscoped(select(PurgingDigest.digest), _UPKEEP))).all()
        return sorted({digest for digest in (*found, *begun) if digest is not None})

    async def is_needed(self, digest: str, before: int) -> bool:
        """Some version that is not over has these bytes."""
        statement = select(AdapterVersion.id).where(
            AdapterVersion.digest == digest,
            AdapterVersion.state != VersionState.PURGED,
            not_(_is_over(before)),
        )
        found = await self._session.scalar(unscoped(statement, _FILES_ARE_SHARED).limit(1))
        return found is not None

    async def is_purging(self, digest: str) -> bool:
        statement = select(PurgingDigest).where(PurgingDigest.digest == digest)
        return await self._session.scalar(unscoped(statement, _FILES_ARE_SHARED)) is not None

    async def begin_purge(self, digest: str, at: int) -> None:
        """From here on nothing is stored under the digest, until `end_purge`."""
        if not await self.is_purging(digest):
            self._session.add(PurgingDigest(digest=digest, started_at=at))

    async def end_purge(self, digest: str, before: int) -> int:
        """The files are gone, or another version's; gives how many versions they were of."""
        statement = delete(PurgingDigest).where(PurgingDigest.digest == digest)
        await self._session.execute(unscoped(statement, _UPKEEP), execution_options=_IN_BULK)
        return await self._mark_over(before, AdapterVersion.digest == digest)

    async def purge_without_files(self, before: int) -> int:
        """Versions that were deleted before their bytes had come."""
        return await self._mark_over(before, AdapterVersion.digest.is_(None))

    async def _mark_over(self, before: int, which: ColumnElement[bool]) -> int:
        rejected = (
            update(AdapterVersion)
            .where(which, _is_over(before), AdapterVersion.state == VersionState.REJECTED)
            .values(digest=None)
        )
        # it stays listed with its reasons; only its files are over
        await self._session.execute(unscoped(rejected, _UPKEEP), execution_options=_IN_BULK)
        archived = (
            update(AdapterVersion)
            .where(which, _is_over(before), AdapterVersion.state == VersionState.ARCHIVED)
            .values(state=VersionState.PURGED)
            .returning(AdapterVersion.id)
        )
        return len(
            (
                await self._session.scalars(unscoped(archived, _UPKEEP), execution_options=_IN_BULK)
            ).all()
        )


def _is_over(before: int) -> ColumnElement[bool]:
    """Archived, or rejected after its bytes were stored, by then."""
    return or_(
        and_(AdapterVersion.state == VersionState.ARCHIVED, AdapterVersion.archived_at <= before),
        and_(AdapterVersion.state == VersionState.REJECTED, AdapterVersion.created_at <= before),
    )
