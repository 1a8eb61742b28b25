"""What both databases do under one name."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.dialect import db_now_ms, for_update_skip_locked, insert_or_ignore
from weft.db.scope import unscoped
from weft.tenancy.models import Tenant

REASON = "a test"


def row(name: str) -> dict[str, object]:
    return {"id": name, "name": name, "created_at": 1, "deleted_at": None}


async def test_rows_that_are_there_are_passed_over_and_not_counted(database: Database) -> None:
    rows = [row(f"t{n}") for n in range(1200)]

    async def insert(session: AsyncSession, first: int, last: int) -> int:
        return await insert_or_ignore(session, Tenant, rows[first:last])

    assert await database.write(lambda session: insert(session, 0, 700)) == 700
    assert await database.write(lambda session: insert(session, 100, 1200)) == 500
    assert await database.write(lambda session: insert(session, 0, 0)) == 0
    async with database.reading() as session:
        assert await session.scalar(unscoped(select(func.count(Tenant.id)), REASON)) == 1200


async def test_the_database_tells_the_time(database: Database) -> None:
    async with database.reading() as session:
        before = time.time() * 1000
        first = await db_now_ms(session)
        after = time.time() * 1000
        assert before - 2 <= first <= after + 2
        await asyncio.sleep(0.02)
        # within one transaction, too
        assert await db_now_ms(session) >= first + 15


async def test_two_that_take_work_take_different_rows(database: Database) -> None:
    async with database.writing() as session:
        session.add_all(Tenant(**row(f"t{n}")) for n in range(4))
    both_have_taken = asyncio.Barrier(2)

    async def take_two(session: AsyncSession) -> set[str]:
        statement = for_update_skip_locked(
            select(Tenant).where(Tenant.deleted_at.is_(None)).order_by(Tenant.id).limit(2)
        )
        taken = (await session.scalars(unscoped(statement, REASON))).all()
        for tenant in taken:
            tenant.deleted_at = 2
        if not database.is_sqlite:
            await both_have_taken.wait()
        return {tenant.id for tenant in taken}

    one, other = await asyncio.gather(database.write(take_two), database.write(take_two))
    assert one | other == {"t0", "t1", "t2", "t3"}
