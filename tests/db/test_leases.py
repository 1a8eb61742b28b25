"""One process at a time does a named job, and a dead one does not keep it."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, update

from weft.db import leases
from weft.db.database import Database
from weft.db.leases import LeaseLostError
from weft.db.models import Lease
from weft.db.scope import unscoped


async def move_end(database: Database, by_s: float, **values: object) -> None:
    """As if that time had passed, or was to come."""
    moved = update(Lease).values(expires_at_ms=Lease.expires_at_ms + round(by_s * 1000), **values)
    async with database.writing() as session:
        await session.execute(unscoped(moved, "a test"))


async def end_of(database: Database) -> int:
    async with database.reading() as session:
        (end,) = await session.scalars(unscoped(select(Lease.expires_at_ms), "a test"))
        return end


async def test_a_lease_has_one_holder_who_may_renew_it(database: Database) -> None:
    taken = await asyncio.gather(
        *(leases.take(database, "sweep", f"process {n}", 60) for n in range(8))
    )
    assert sum(taken) == 1
    holder = f"process {taken.index(True)}"
    assert await leases.take(database, "sweep", holder, 60)
    assert await leases.take(database, "reap", "process 9", 60)
    await leases.give_up(database, "sweep", "somebody else")
    assert not await leases.take(database, "sweep", "process 9", 60)
    await leases.give_up(database, "sweep", holder)
    assert await leases.take(database, "sweep", "process 9", 60)


async def test_a_lease_that_is_not_renewed_ends(database: Database) -> None:
    assert await leases.take(database, "sweep", "dead", 60)
    assert not await leases.take(database, "sweep", "alive", 60)
    await move_end(database, -60)
    assert await leases.take(database, "sweep", "alive", 60)
    assert not await leases.take(database, "sweep", "dead", 60)


async def test_work_longer_than_its_lease_stays_alone(database: Database) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        assert not has_begun.is_set()
        has_begun.set()
        await may_end.wait()
        return 7

    async def ask(name: str) -> int | None:
        return await leases.run_alone(database, "sweep", name, work, duration_s=2.0)

    first = asyncio.create_task(ask("one"))
    await has_begun.wait()
    end = await end_of(database)
    while await end_of(database) == end:  # it is renewed long before it ends
        assert await ask("other") is None
        await asyncio.sleep(0.05)
    may_end.set()
    assert await first == 7
    # it was given up at once
    assert await leases.take(database, "sweep", "other", 60)


async def test_what_the_work_raises_is_raised_and_ends_the_lease(database: Database) -> None:
    async def work() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await leases.run_alone(database, "sweep", "one", work)
    assert await leases.take(database, "sweep", "other", 60)


async def test_work_whose_lease_went_to_another_is_cancelled(database: Database) -> None:
    has_begun, was_cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        has_begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    working = asyncio.create_task(leases.run_alone(database, "sweep", "one", work, duration_s=2.0))
    await has_begun.wait()
    await move_end(database, 60, holder="other")
    with pytest.raises(LeaseLostError):
        await working
    assert was_cancelled.is_set()
    # and it did not take the other's lease with it
    assert not await leases.take(database, "sweep", "one", 60)


def test_every_process_names_itself_differently() -> None:
    assert leases.create_holder() != leases.create_holder()
