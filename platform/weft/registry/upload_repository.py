"""Queries on uploads and their parts."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import Owner, scoped, unscoped
from weft.registry.models import Upload, UploadPart

_UPKEEP = "upkeep is for all tenants"
OPEN = ("pending", "completed")


class UploadRepository:
    """One tenant's rows in one session."""

    def __init__(self, session: AsyncSession, owner: Owner) -> None:
        self._session, self._owner = session, owner

    def add(self, row: Upload | UploadPart) -> None:
        self._session.add(row)

    async def flush(self) -> None:
        await self._session.flush()

    async def find(self, upload_id: str) -> Upload | None:
        statement = select(Upload).where(Upload.id == upload_id)
        return await self._session.scalar(scoped(statement, self._owner))

    async def list_parts(self, upload: Upload) -> Sequence[UploadPart]:
        statement = (
            select(UploadPart).where(UploadPart.upload_id == upload.id).order_by(UploadPart.number)
        )
        return (await self._session.scalars(scoped(statement, self._owner))).all()

    async def delete_parts(self, upload: Upload) -> None:
        statement = delete(UploadPart).where(UploadPart.upload_id == upload.id)
        await self._session.execute(scoped(statement, self._owner))

    async def count_open(self) -> tuple[int, int]:
        """(uploads, bytes that they are to have)."""
        statement = select(
            func.count(Upload.id), func.coalesce(func.sum(Upload.num_bytes), 0)
        ).where(Upload.status.in_(OPEN))
        row = (await self._session.execute(scoped(statement, self._owner))).one()
        return int(row[0]), int(row[1])


class UploadMaintenanceRepository:
    """All tenants' rows in one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def list_expired(self, at: int) -> Sequence[Upload]:
        statement = select(Upload).where(Upload.status.in_(OPEN), Upload.expires_at <= at)
        return (await self._session.scalars(unscoped(statement, _UPKEEP))).all()

    async def list_open_ids(self) -> set[str]:
        statement = select(Upload.id).where(Upload.status.in_(OPEN))
        return set((await self._session.scalars(unscoped(statement, _UPKEEP))).all())
