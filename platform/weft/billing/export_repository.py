"""Queries on exports."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.billing.models import ExportRow
from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, scoped, unscoped

_OPERATOR = "exports are made by the operator"


class ExportRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, row: ExportRow) -> None:
        self._session.add(row)

    async def find(self, export_id: str) -> ExportRow | None:
        statement = select(ExportRow).where(ExportRow.id == export_id)
        return await self._session.scalar(unscoped(statement, _OPERATOR))

    async def list_series(self, target: str, series: str, owner: Owner) -> Sequence[ExportRow]:
        """The newest last."""
        statement = (
            select(ExportRow)
            .where(ExportRow.target == target, ExportRow.series == series)
            .order_by(ExportRow.sequence)
        )
        return (await self._session.scalars(scoped(statement, owner))).all()

    async def list_page(self, page: PageRequest) -> Page[ExportRow]:
        """Of those that consumers may read."""
        finished = select(ExportRow).where(ExportRow.manifest_sha256.is_not(None))
        statement = page.apply(finished, ExportRow.id)
        rows = (await self._session.scalars(unscoped(statement, _OPERATOR))).all()
        return Page.of(rows, page)

    async def list_finished(self, target: str) -> Sequence[ExportRow]:
        """All that consumers may read at a target."""
        statement = (
            select(ExportRow)
            .where(ExportRow.target == target, ExportRow.manifest_sha256.is_not(None))
            .order_by(ExportRow.series, ExportRow.sequence)
        )
        return (await self._session.scalars(unscoped(statement, _OPERATOR))).all()
