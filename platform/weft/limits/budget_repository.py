"""Queries on budgets: a tenant's own, and the bases' that all tenants share."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, case, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import Owner, scoped_or_shared
from weft.limits.models import Budget
from weft.limits.subjects import Subject


class BudgetRepository:
    """Rows of one session that one tenant's requests count in."""

    def __init__(self, session: AsyncSession, owner: Owner) -> None:
        self._session, self._owner = session, owner

    async def list_of(self, subjects: Sequence[Subject]) -> Sequence[Budget]:
        """The subjects' budgets, in the order in which they are held."""
        is_wanted = or_(
            *(
                and_(Budget.subject_kind == subject.kind, Budget.subject_id == subject.id)
                for subject in subjects
            )
        )
        statement = select(Budget).where(is_wanted).order_by(Budget.id)
        return (await self._session.scalars(scoped_or_shared(statement, self._owner))).all()

    async def hold(self, budget_id: str, amount_pico: int, period_start: int) -> int | None:
        """Keep the amount if there is room: the start of the period that it is kept in, or None.

        One statement, so that no other request comes between the check and the hold. A period never
        goes back: a clock that is behind holds in the period that has begun.
        """
        is_over = Budget.period_start < period_start
        spent = case((is_over, 0), else_=Budget.spent_pico)
        held = case((is_over, 0), else_=Budget.held_pico)
        statement = (
            update(Budget)
            .where(Budget.id == budget_id, spent + held + amount_pico <= Budget.limit_pico)
            .values(
                spent_pico=spent,
                held_pico=held + amount_pico,
                period_start=case((is_over, period_start), else_=Budget.period_start),
            )
            .returning(Budget.period_start)
            .execution_options(synchronize_session=False)
        )
        return await self._session.scalar(scoped_or_shared(statement, self._owner))

    async def settle(
        self, budget_id: str, period_start: int, held_pico: int, actual_pico: int
    ) -> None:
        """Turn a hold into what was spent, while its period lasts."""
        statement = (
            update(Budget)
            .where(Budget.id == budget_id, Budget.period_start == period_start)
            .values(
                spent_pico=Budget.spent_pico + actual_pico,
                held_pico=Budget.held_pico - held_pico,
            )
            .execution_options(synchronize_session=False)
        )
        await self._session.execute(scoped_or_shared(statement, self._owner))
