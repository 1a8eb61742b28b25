"""Holds and spends budgets, in the transaction that writes what the money is for.

So the ledger, the usage row and the budget cannot differ, and a budget is never overshot: the
highest possible cost is held before a request runs, and what it did cost replaces the hold. Money
fails closed: without the database there is no hold, and without a hold there is no request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from weft.db.scope import Owner
from weft.db.transactions import Answers, Transaction
from weft.errors import QuotaExceededError
from weft.limits import budget_repository
from weft.limits.budget_repository import BudgetKey, BudgetState
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


@dataclass(frozen=True, slots=True)
class Wanted:
    """The most that a request may cost, to be kept in all of its subjects' budgets.

    `now` is the database's clock in Unix seconds.
    """

    subjects: RequestSubjects
    worst_case_pico: int
    now: int


class BudgetsOf:
    """The budgets of requests that are to begin together; first asked for, then held in."""

    def __init__(self, requests: Sequence[RequestSubjects], answers: Answers) -> None:
        self._requests, self._answers = requests, answers

    @classmethod
    async def ask(cls, tx: Transaction, requests: Iterable[RequestSubjects]) -> BudgetsOf:
        distinct = list(dict.fromkeys(requests))
        return cls(distinct, await budget_repository.ask_ids(tx, distinct))

    async def hold(
        self, tx: Transaction, groups: Sequence[Sequence[Wanted]]
    ) -> list[list[tuple[BudgetHold, ...]] | BudgetExceededError]:
        """Keep what each group's requests want: all of them, or none where a budget has no room.

        For each group the holds of each of its requests, or why there are none.
        """
        answers = await self._answers.rows()
        keys = {
            subjects: [BudgetKey(id_, subjects.tenant_id) for (id_,) in sorted(rows)]
            for subjects, rows in zip(self._requests, answers, strict=True)
        }
        # one key each, whichever tenant it is reached by
        by_id = {key.id: key for of in keys.values() for key in of}
        if not by_id:
            return [[()] * len(group) for group in groups]
        before = await budget_repository.lock(tx, list(by_id.values()))
        now = dict(before)
        results: list[list[tuple[BudgetHold, ...]] | BudgetExceededError] = []
        for group in groups:
            after, held = dict(now), []
            try:
                for wanted in group:
                    ids = [key.id for key in keys[wanted.subjects] if key.id in before]
                    held.append(_hold(after, ids, wanted))
            except BudgetExceededError as error:
                results.append(error)
            else:
                now = after
                results.append(held)
        changed = [(by_id[id_], now[id_]) for id_ in now if now[id_] != before[id_]]
        await budget_repository.write(tx, changed)
        return results


def _hold(
    states: dict[str, BudgetState], ids: Iterable[str], wanted: Wanted
) -> tuple[BudgetHold, ...]:
    """In `states`. A period never goes back: a clock that is behind holds in the one that has
    begun."""
    assert wanted.worst_case_pico >= 0
    holds = []
    for id_ in ids:
        state = states[id_]
        start = period_start(state.period, wanted.now)
        if state.period_start < start:
            state = state._replace(spent_pico=0, held_pico=0, period_start=start)
        held_pico = state.held_pico + wanted.worst_case_pico
        if state.spent_pico + held_pico > state.limit_pico:
            raise _exceeded(state)
        states[id_] = state._replace(held_pico=held_pico)
        holds.append(BudgetHold(id_, state.period_start, wanted.worst_case_pico))
    return tuple(holds)


async def hold(tx: Transaction, wanted: Wanted) -> tuple[BudgetHold, ...]:
    """For one request alone; BudgetExceededError, and nothing is held, where there is no room."""
    found = await BudgetsOf.ask(tx, [wanted.subjects])
    (result,) = await found.hold(tx, [[wanted]])
    if isinstance(result, BudgetExceededError):
        raise result
    return result[0]


async def settle(tx: Transaction, spent: Iterable[tuple[Owner, Iterable[BudgetHold], int]]) -> None:
    """Spend the amount of each request's holds (0: give all of it back).

    A request counts in the period in which it was admitted; nothing is left to do for a period that
    is over or a budget that was deleted. Not idempotent: the caller deletes the holds in the same
    transaction.
    """
    sums: dict[tuple[str, int], tuple[BudgetKey, int, int, int]] = {}
    for owner, holds, actual_pico in spent:
        assert actual_pico >= 0
        for held in holds:
            which = (held.budget_id, held.period_start)
            key = BudgetKey(held.budget_id, owner.tenant_id)
            _, _, held_pico, spent_pico = sums.get(which, (key, 0, 0, 0))
            sums[which] = (
                key, held.period_start, held_pico + held.amount_pico, spent_pico + actual_pico
            )  # fmt: skip
    await budget_repository.settle(
        tx, [each for _, each in sorted(sums.items()) if each[2] or each[3]]
    )


def holds_by_budget(holds: Iterable[BudgetHold]) -> Mapping[tuple[str, int], int]:
    """Sums by (budget, period start), to be held against the budgets' own `held_pico`."""
    sums: dict[tuple[str, int], int] = {}
    for held in holds:
        key = (held.budget_id, held.period_start)
        sums[key] = sums.get(key, 0) + held.amount_pico
    return sums


def _exceeded(budget: BudgetState) -> BudgetExceededError:
    # no amounts: a key's holder need not be who sees prices
    whose = f"{_ADJECTIVES[budget.period]} budget of {budget.subject_kind} '{budget.subject_id}'"
    return BudgetExceededError(
        f"The {whose} has no room for what this request may cost at most. A lower max_tokens costs "
        "less; otherwise the budget must be raised, or its next period be waited for."
    )
