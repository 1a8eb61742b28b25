"""Queries on limits, and on budgets as they are administered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.base import Executable

from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, scoped, scoped_or_shared, unscoped
from weft.limits.models import Budget, Limit
from weft.limits.subjects import Period, Subject

RowT = TypeVar("RowT", Limit, Budget)
StatementT = TypeVar("StatementT", bound=Executable)


class LimitRepository:
    """Limits of one session that hold for one tenant's requests."""

    def __init__(self, session: AsyncSession, owner: Owner) -> None:
        self._session, self._owner = session, owner

    async def list_of(self, subjects: Sequence[Subject]) -> Sequence[Limit]:
        """The subjects' limits, for all models and for single ones; bases' are the platform's."""
        is_wanted = or_(
            *(
                and_(Limit.subject_kind == subject.kind, Limit.subject_id == subject.id)
                for subject in subjects
            )
        )
        statement = select(Limit).where(is_wanted)
        return (await self._session.scalars(scoped_or_shared(statement, self._owner))).all()


class LimitAdminRepository:
    """Limits and budgets of one session: a tenant's own, or (`owner` None) the bases'."""

    def __init__(self, session: AsyncSession, owner: Owner | None) -> None:
        self._session, self._owner = session, owner

    async def add(self, row: Limit | Budget) -> None:
        self._session.add(row)
        await self._session.flush()

    async def flush(self) -> None:
        await self._session.flush()

    async def find(self, table: type[RowT], row_id: str) -> RowT | None:
        statement = select(table).where(table.id == row_id)
        return await self._session.scalar(_of(statement, table, self._owner))

    async def find_limit(self, subject: Subject, model: str) -> Limit | None:
        statement = select(Limit).where(*_is_of(Limit, subject), Limit.model == model)
        return await self._session.scalar(_of(statement, Limit, self._owner))

    async def find_budget(self, subject: Subject, period: Period) -> Budget | None:
        statement = select(Budget).where(*_is_of(Budget, subject), Budget.period == period)
        return await self._session.scalar(_of(statement, Budget, self._owner))

    async def list_of_models(self, project_id: str) -> Page[Limit]:
        """A project's limits of single models, by the model's name, all on one page."""
        statement = select(Limit).where(
            *_is_of(Limit, Subject("project", project_id)), Limit.model != ""
        )
        statement = statement.order_by(Limit.model)
        rows = (await self._session.scalars(_of(statement, Limit, self._owner))).all()
        return Page(rows, has_more=False)

    async def list_rows(self, table: type[RowT], page: PageRequest) -> Page[RowT]:
        statement = page.apply(select(table), table.id)
        rows = (await self._session.scalars(_of(statement, table, self._owner))).all()
        return Page.of(rows, page)

    async def delete(self, row: Limit | Budget) -> None:
        table = type(row)
        statement = delete(table).where(table.id == row.id)
        await self._session.execute(_of(statement, table, self._owner))


def _is_of(table: type[Limit] | type[Budget], subject: Subject) -> tuple[Any, Any]:
    return table.subject_kind == subject.kind, table.subject_id == subject.id


def _of(
    statement: StatementT, table: type[Limit] | type[Budget], owner: Owner | None
) -> StatementT:
    if owner is not None:
        return scoped(statement, owner)
    narrowed: Any = statement
    of_bases: StatementT = narrowed.where(table.subject_kind == "base")
    return unscoped(of_bases, "bases belong to no tenant")
