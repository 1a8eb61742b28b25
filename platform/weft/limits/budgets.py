"""Holds and spends budgets, in the transaction that writes what the money is for.

So the ledger, the usage row and the budget cannot differ, and a budget is never overshot: the
highest possible cost is held before a request runs, and what it did cost replaces the hold. Money
fails closed: without the database there is no hold, and without a hold there is no request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import Owner, TenantOwner
from weft.errors import QuotaExceededError
from weft.limits.budget_repository import BudgetRepository
from weft.limits.models import Budget
from weft.limits.subjects import Period, RequestSubjects

_ADJECTIVES: dict[Period, str] = {"day": "daily", "month": "monthly", "total": "total"}


class BudgetExceededError(QuotaExceededError):
    """A budget has no room for what a request may cost at most."""


@dataclass(frozen=True, slots=True)
class BudgetHold:
    """`amount_pico` of a budget's period that began at `period_start`, kept for one request."""

    budget_id: str
    period_start: int
    amount_pico: int

    def to_json(self) -> list[str | int]:
        return [self.budget_id, self.period_start, self.amount_pico]

    @classmethod
    def from_json(cls, value: Sequence[str | int]) -> BudgetHold:
        budget_id, period_start, amount_pico = value
        return cls(str(budget_id), int(period_start), int(amount_pico))


def period_start(period: Period, time_s: int) -> int:
    """When the period of `time_s` began, in UTC: Unix seconds, 0 for all time."""
    if period == "total":
        return 0
    moment = datetime.fromtimestamp(time_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return int((moment.replace(day=1) if period == "month" else moment).timestamp())


async def hold(
    session: AsyncSession, subjects: RequestSubjects, worst_case_pico: int, now: int
) -> tuple[BudgetHold, ...]:
    """Keep `worst_case_pico` in every budget of the request's subjects; none where it has none.

    BudgetExceededError where one has no room: then the caller's transaction must not commit. `now`
    is the database's clock in Unix seconds.
    """
    assert worst_case_pico >= 0
    repository = BudgetRepository(session, TenantOwner(subjects.tenant_id))
    holds: list[BudgetHold] = []
    # each budget's row is locked by its update: always in the same order, or two requests that wait
    # for each other would be a deadlock
    for budget in await repository.list_of(subjects.all):
        start = period_start(budget.period, now)
        held_in = await repository.hold(budget.id, worst_case_pico, start)
        if held_in is None:
            raise _exceeded(budget)
        holds.append(BudgetHold(budget.id, held_in, worst_case_pico))
    return tuple(holds)


async def settle(
    session: AsyncSession, owner: Owner, holds: Iterable[BudgetHold], actual_pico: int
) -> None:
    """Spend `actual_pico` of each hold (0: give all of it back).

    A request counts in the period in which it was admitted; nothing is left to do for a period that
    is over or a budget that was deleted. Not idempotent: the caller deletes the holds in the same
    transaction.
    """
    assert actual_pico >= 0
    repository = BudgetRepository(session, owner)
    for held in sorted(holds, key=lambda held: held.budget_id):
        await repository.settle(held.budget_id, held.period_start, held.amount_pico, actual_pico)


def holds_by_budget(holds: Iterable[BudgetHold]) -> Mapping[tuple[str, int], int]:
    """Sums by (budget, period start), to be held against the budgets' own `held_pico`."""
    sums: dict[tuple[str, int], int] = {}
    for held in holds:
        key = (held.budget_id, held.period_start)
        sums[key] = sums.get(key, 0) + held.amount_pico
    return sums


def _exceeded(budget: Budget) -> BudgetExceededError:
    # no amounts: a key's holder need not be who sees prices
    whose = f"{_ADJECTIVES[budget.period]} budget of {budget.subject_kind} '{budget.subject_id}'"
    return BudgetExceededError(
        f"The {whose} has no room for what this request may cost at most. A lower max_tokens costs "
        "less; otherwise the budget must be raised, or its next period be waited for."
    )
