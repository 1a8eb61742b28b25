"""Queries on budgets: a tenant's own, and the bases' that all tenants share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, bindparam, or_, select, update

from weft.db.dialect import for_update
from weft.db.prepared import Prepared
from weft.db.scope import TENANT_PARAMETER, scoped_or_shared_by_parameter
from weft.db.transactions import Answers, Transaction, fetch
from weft.limits.models import Budget
from weft.limits.subjects import Period, RequestSubjects, SubjectKind


class BudgetState(NamedTuple):
    """A budget as it is now."""

    id: str
    subject_kind: SubjectKind
    subject_id: str
    period: Period
    limit_pico: int
    spent_pico: int
    held_pico: int
    period_start: int


class BudgetKey(NamedTuple):
    """A budget as a tenant reaches it."""

    id: str
    tenant_id: str


def _is_of(kind: SubjectKind, parameter: str) -> ColumnElement[bool]:
    return and_(Budget.subject_kind == kind, Budget.subject_id == bindparam(parameter))


_LIST = Prepared(
    scoped_or_shared_by_parameter(
        select(Budget.id).where(
            or_(
                _is_of("tenant", "subject_tenant"),
                _is_of("project", "subject_project"),
                _is_of("key", "subject_key"),
                _is_of("base", "subject_base"),
                _is_of("adapter", "subject_adapter"),
            )
        )
    )
)
_LOCK = Prepared(
    scoped_or_shared_by_parameter(
        for_update(
            select(*(getattr(Budget, name) for name in BudgetState._fields)).where(
                Budget.id == bindparam("budget_id")
            )
        )
    )
)
_HOLD = Prepared(
    scoped_or_shared_by_parameter(
        update(Budget)
        .where(Budget.id == bindparam("budget_id"))
        .values(
            spent_pico=bindparam("new_spent"),
            held_pico=bindparam("new_held"),
            period_start=bindparam("new_start"),
        )
    )
)
_SETTLE = Prepared(
    scoped_or_shared_by_parameter(
        update(Budget)
        .where(Budget.id == bindparam("budget_id"), Budget.period_start == bindparam("held_since"))
        .values(
            spent_pico=Budget.spent_pico + bindparam("more_spent"),
            held_pico=Budget.held_pico - bindparam("less_held"),
        )
    )
)


async def ask_ids(tx: Transaction, requests: Sequence[RequestSubjects]) -> Answers:
    """The ids of the budgets of each."""
    return await tx.ask(
        _LIST,
        [
            {
                TENANT_PARAMETER: subjects.tenant_id,
                "subject_tenant": subjects.tenant_id,
                "subject_project": subjects.project_id,
                "subject_key": subjects.key_id,
                "subject_base": subjects.base,
                "subject_adapter": subjects.adapter_id,
            }
            for subjects in requests
        ],
    )


async def lock(tx: Transaction, keys: Sequence[BudgetKey]) -> dict[str, BudgetState]:
    """Budgets by id, which nobody else changes before the transaction ends.

    Two transactions that lock each other's would wait for ever: always in the order of the ids.
    """
    rows = [{TENANT_PARAMETER: key.tenant_id, "budget_id": key.id} for key in sorted(keys)]
    found = await fetch(tx, _LOCK, rows)
    states = (BudgetState._make(row) for each in found for row in each)
    return {state.id: state for state in states}


async def write(tx: Transaction, states: Sequence[tuple[BudgetKey, BudgetState]]) -> None:
    """What is spent and held of budgets that are locked."""
    await tx.run(
        _HOLD,
        [
            {
                TENANT_PARAMETER: key.tenant_id,
                "budget_id": key.id,
                "new_spent": state.spent_pico,
                "new_held": state.held_pico,
                "new_start": state.period_start,
            }
            for key, state in states
        ],
    )


async def settle(tx: Transaction, spendings: Sequence[tuple[BudgetKey, int, int, int]]) -> None:
    """Turn holds into what was spent, while their period lasts: (budget, start of the period, held,
    spent), in the order of the ids."""
    await tx.run(
        _SETTLE,
        [
            {
                TENANT_PARAMETER: key.tenant_id,
                "budget_id": key.id,
                "held_since": period_start,
                "less_held": held_pico,
                "more_spent": spent_pico,
            }
            for key, period_start, held_pico, spent_pico in spendings
        ],
    )
