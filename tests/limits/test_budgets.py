"""A budget is never overshot, whatever happens at the same time and whichever period begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from weft.db.database import Database
from weft.db.scope import TenantOwner, unscoped
from weft.limits import budgets
from weft.limits.budgets import BudgetExceededError, BudgetHold, Wanted
from weft.limits.models import Budget
from weft.limits.subjects import Period, RequestSubjects, SubjectKind
from weft.tenancy import service

NOW = 1_763_762_400  # 2025-11-21 22:00 UTC
DAY_S = 86_400


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def subjects(database: Database) -> RequestSubjects:
    async with database.writing() as session:
        tenant = await service.create_tenant(session, "acme")
    return RequestSubjects(
        tenant_id=tenant.id, project_id="proj", key_id="key", base="tiny", adapter_id="adp"
    )


async def make(
    database: Database, kind: SubjectKind, subject_id: str, limit_pico: int, period: Period = "day",
    *, tenant_id: str | None,
) -> str:  # fmt: skip
    async with database.writing() as session:
        row = Budget(
            id=f"bdg_{kind}_{period}", tenant_id=tenant_id, subject_kind=kind,
            subject_id=subject_id, period=period, limit_pico=limit_pico, spent_pico=0, held_pico=0,
            period_start=budgets.period_start(period, NOW), created_at=NOW, updated_at=NOW,
        )  # fmt: skip
        session.add(row)
    return row.id


async def hold(
    database: Database, subjects: RequestSubjects, amount: int, now: int = NOW
) -> tuple[BudgetHold, ...]:
    wanted = Wanted(subjects, amount, now)
    return await database.transact(lambda tx: budgets.hold(tx, wanted))


async def settle(
    database: Database, subjects: RequestSubjects, holds: tuple[BudgetHold, ...], actual: int
) -> None:
    owner = TenantOwner(subjects.tenant_id)
    await database.transact(lambda tx: budgets.settle(tx, [(owner, holds, actual)]))


async def amounts(database: Database) -> dict[str, tuple[int, int]]:
    """(spent, held) by budget."""
    async with database.reading() as session:
        rows = await session.scalars(unscoped(select(Budget), "a test"))
        return {row.id: (row.spent_pico, row.held_pico) for row in rows}


async def test_what_a_request_cost_replaces_what_was_held_for_it(
    database: Database, subjects: RequestSubjects
) -> None:
    budget = await make(database, "project", "proj", 100, tenant_id=subjects.tenant_id)
    first, second = [await hold(database, subjects, 50) for _ in range(2)]
    assert await amounts(database) == {budget: (0, 100)}
    with pytest.raises(BudgetExceededError, match="daily budget of project 'proj'"):
        await hold(database, subjects, 1)
    await settle(database, subjects, first, 30)
    await settle(database, subjects, second, 0)
    assert await amounts(database) == {budget: (30, 0)}
    await hold(database, subjects, 70)


async def test_requests_at_once_hold_no_more_than_there_is(
    database: Database, subjects: RequestSubjects
) -> None:
    budget = await make(database, "key", "key", 100, tenant_id=subjects.tenant_id)
    held = await asyncio.gather(
        *(hold(database, subjects, 30) for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, tuple) for result in held) == 3
    assert all(isinstance(result, tuple | BudgetExceededError) for result in held)
    assert await amounts(database) == {budget: (0, 90)}


async def test_a_request_holds_in_all_of_its_budgets_or_in_none(
    database: Database, subjects: RequestSubjects
) -> None:
    tenant_id = subjects.tenant_id
    for kind, subject_id in (("tenant", tenant_id), ("project", "proj"), ("adapter", "adp")):
        await make(database, kind, subject_id, 100, tenant_id=tenant_id)  # type: ignore[arg-type]
    base = await make(database, "base", "tiny", 40, tenant_id=None)
    await make(database, "key", "another key", 0, tenant_id=tenant_id)
    holds = await hold(database, subjects, 40)
    assert len(holds) == 4
    with pytest.raises(BudgetExceededError, match="base 'tiny'"):
        await hold(database, subjects, 10)
    found = await amounts(database)
    assert found[base] == found["bdg_tenant_day"] == (0, 40)
    await settle(database, subjects, holds, 0)
    assert set((await amounts(database)).values()) == {(0, 0)}


async def test_another_tenants_budget_of_the_same_subject_is_not_touched(
    database: Database, subjects: RequestSubjects
) -> None:
    async with database.writing() as session:
        other = await service.create_tenant(session, "other")
    await make(database, "project", "proj", 0, tenant_id=other.id)
    assert await hold(database, subjects, 5) == ()


async def test_a_period_begins_anew_and_late_ends_belong_to_the_old_one(
    database: Database, subjects: RequestSubjects
) -> None:
    daily = await make(database, "project", "proj", 100, tenant_id=subjects.tenant_id)
    total = await make(database, "project", "proj", 150, "total", tenant_id=subjects.tenant_id)
    old = await hold(database, subjects, 100)
    new = await hold(database, subjects, 50, NOW + DAY_S)
    await settle(database, subjects, old, 90)
    assert await amounts(database) == {daily: (0, 50), total: (90, 50)}
    # a worker whose clock is behind does not bring yesterday's budget back
    with pytest.raises(BudgetExceededError):
        await hold(database, subjects, 60)
    await settle(database, subjects, new, 50)
    assert await amounts(database) == {daily: (50, 0), total: (140, 0)}


async def test_a_lowered_limit_holds_at_once_and_a_deleted_budget_no_longer(
    database: Database, subjects: RequestSubjects
) -> None:
    budget = await make(database, "project", "proj", 100, tenant_id=subjects.tenant_id)
    holds = await hold(database, subjects, 50)
    async with database.writing() as session:
        row = await session.scalar(unscoped(select(Budget), "a test"))
        assert row is not None
        row.limit_pico = 20
    with pytest.raises(BudgetExceededError):
        await hold(database, subjects, 0)
    async with database.writing() as session:
        row = await session.scalar(unscoped(select(Budget), "a test"))
        await session.delete(row)
    await settle(database, subjects, holds, 10)
    assert await hold(database, subjects, 1000) == ()
    assert budget not in await amounts(database)


def test_periods_begin_in_utc() -> None:
    assert budgets.period_start("day", NOW) == 1_763_683_200
    assert budgets.period_start("month", NOW) == 1_761_955_200
    assert budgets.period_start("total", NOW) == 0


def test_a_hold_survives_its_way_through_the_database() -> None:
    hold = BudgetHold("bdg", 5, 7)
    assert BudgetHold.from_json(hold.to_json()) == hold
    assert budgets.holds_by_budget([hold, hold]) == {("bdg", 5): 14}
