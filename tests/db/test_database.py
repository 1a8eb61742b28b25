"""Sessions on both databases: what is committed, what is undone, and who waits for whom."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.errors import TextRefusedError
from weft.db.group_commit import DatabaseClosedError
from weft.db.scope import unscoped
from weft.tenancy.models import Tenant

REASON = "a test"


def tenant(name: str) -> Tenant:
    return Tenant(id=name, name=name, created_at=1, deleted_at=None)


async def names(database: Database) -> list[str]:
    async with database.reading() as session:
        found = await session.scalars(unscoped(select(Tenant.name).order_by(Tenant.name), REASON))
        return list(found)


async def test_a_job_is_committed_when_its_result_is_there(database: Database) -> None:
    async def job(session: AsyncSession) -> str:
        session.add(tenant("a"))
        return "done"

    assert await database.write(job) == "done"
    assert await names(database) == ["a"]


async def test_a_job_that_fails_is_undone_alone(database: Database) -> None:
    async def good(session: AsyncSession, name: str) -> None:
        session.add(tenant(name))

    async def bad(session: AsyncSession, name: str) -> None:
        session.add(tenant(name))
        await session.flush()
        raise RuntimeError(name)

    results = await asyncio.gather(
        *(
            database.write(lambda s, n=n: (bad if n % 3 == 1 else good)(s, str(n)))  # type: ignore[misc]
            for n in range(20)
        ),
        database.write(lambda s: good(s, "0")),
        return_exceptions=True,
    )
    assert await names(database) == sorted(str(n) for n in range(20) if n % 3 != 1)
    for n in range(1, 20):
        assert (repr(results[n]) == repr(RuntimeError(str(n)))) == (n % 3 == 1)
    assert [type(result) for result in (results[0], results[20])].count(IntegrityError) == 1


async def test_a_caller_that_gives_up_before_its_job_was_begun_leaves_nothing(
    database: Database,
) -> None:
    async def job(session: AsyncSession) -> None:
        session.add(tenant("a"))

    given_up = asyncio.create_task(database.write(job))
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await database.write(lambda session: session.flush())
    assert await names(database) == []


async def test_additions_of_jobs_beside_each_other_are_all_counted(database: Database) -> None:
    async with database.writing() as session:
        session.add(tenant("a"))

    async def add_one(session: AsyncSession) -> None:
        await session.execute(
            unscoped(update(Tenant).values(created_at=Tenant.created_at + 1), REASON)
        )

    await asyncio.gather(*(database.write(add_one) for _ in range(50)))
    async with database.reading() as session:
        assert await session.scalar(unscoped(select(Tenant.created_at), REASON)) == 51


async def test_a_job_that_loses_a_deadlock_is_run_again(database: Database) -> None:
    async with database.writing() as session:
        session.add_all([tenant("a"), tenant("b")])
    num_runs = 0
    both_hold_one = asyncio.Barrier(2)

    async def add_to_both(session: AsyncSession, order: str) -> None:
        nonlocal num_runs
        num_runs += 1
        is_first_run = num_runs <= 2
        for name in order:
            statement = update(Tenant).where(Tenant.id == name)
            statement = statement.values(created_at=Tenant.created_at + 1)
            await session.execute(unscoped(statement, REASON))
            if name == order[0] and is_first_run and not database.is_sqlite:
                await both_hold_one.wait()

    await asyncio.gather(
        database.write(lambda session: add_to_both(session, "ab")),
        database.write(lambda session: add_to_both(session, "ba")),
    )
    assert num_runs == (2 if database.is_sqlite else 3)
    async with database.reading() as session:
        counts = await session.scalars(unscoped(select(Tenant.created_at), REASON))
        assert list(counts) == [3, 3]


async def test_administrative_transactions_run_one_after_another(database_url: str) -> None:
    """Two processes that count before they add: the second sees what the first has added."""
    databases = [Database(database_url), Database(database_url)]

    async def add_if_alone(database: Database) -> None:
        async with database.writing() as session:
            count = await session.scalar(unscoped(select(func.count(Tenant.id)), REASON))
            await asyncio.sleep(0.02)
            if not count:
                session.add(tenant(f"t{id(database)}"))

    await asyncio.gather(*(add_if_alone(database) for database in databases * 2))
    assert len(await names(databases[0])) == 1
    for database in databases:
        await database.close()


async def test_what_waits_is_written_before_the_database_closes(database_url: str) -> None:
    database = Database(database_url)

    async def job(session: AsyncSession) -> None:
        session.add(tenant("a"))

    waiting = asyncio.create_task(database.write(job))
    await asyncio.sleep(0)
    if database.is_sqlite:
        await database.close()
        await waiting
        with pytest.raises(DatabaseClosedError):
            await database.write(job)
    else:
        await waiting
        await database.close()
    database = Database(database_url)
    assert await names(database) == ["a"]
    await database.close()


async def test_text_with_nul_finds_nothing_and_is_no_fault_of_ours(database: Database) -> None:
    """PostgreSQL has no such text; SQLite has, and finds no row of it."""
    statement = unscoped(select(Tenant.name).where(Tenant.name == "a\x00b"), REASON)

    async def find() -> object:
        async with database.reading() as session:
            return await session.scalar(statement)

    async def job(session: AsyncSession) -> object:
        return await session.scalar(statement)

    if database.is_sqlite:
        assert (await find(), await database.write(job)) == (None, None)
        return
    for refused in (find(), database.write(job)):
        with pytest.raises(TextRefusedError) as caught:
            await refused
        assert caught.value.status_code == 400
