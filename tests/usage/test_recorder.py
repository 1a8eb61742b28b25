"""Every request that reached the engine is exactly one event, through retries and crashes."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from tests.usage.conftest import WORST_CASE_PICO, Meter

from weft.db.dialect import db_now_ms
from weft.db.scope import TenantOwner
from weft.limits.budgets import BudgetExceededError
from weft.messages import Usage
from weft.usage.models import OutboxMessage, Replica
from weft.usage.prices import PriceTerms, Rates, publish
from weft.usage.report_repository import ReportRepository
from weft.usage.repository import take_pending


async def test_a_request_is_pending_first_and_then_one_event(meter: Meter) -> None:
    recorder = await meter.recorder()
    req = meter.request("r1")
    await recorder.begin([req])
    assert (await meter.events(), await meter.num_pending()) == ([], 1)
    assert [await recorder.finish(req, Usage(5, 7, 2), "stop", "ok") for _ in range(2)] == [
        True,
        False,  # a retry changes nothing
    ]
    (event,) = await meter.events()
    assert await meter.num_pending() == 0
    assert (event.prompt_tokens, event.completion_tokens, event.cached_prompt_tokens) == (5, 7, 2)
    assert (event.outcome, event.finish_reason, event.adapter_digest) == ("ok", "stop", "sha")
    assert event.recorded_at_ms >= event.ended_at_ms >= event.started_at_ms > 0
    assert (event.replica_id, event.replica_seq) == (recorder.replica_id, 1)
    assert (event.price_id, event.amount_pico) == (None, 0)
    assert await meter.balances() == {}


async def test_what_a_request_costs_is_held_and_then_paid(meter: Meter) -> None:
    await meter.set_price()
    await meter.set_budget(1000)
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1")])
    assert await meter.budget() == (0, WORST_CASE_PICO)
    assert await meter.balances() == {
        "tenant:acme:held": WORST_CASE_PICO,
        "holds": -WORST_CASE_PICO,
    }
    await recorder.finish(meter.request("r1"), Usage(10, 3, 4), "stop", "ok")
    (event,) = await meter.events()
    cost = 6 * 5 + 4 * 2 + 3 * 7
    assert (event.price_id, event.amount_pico) == ("price", cost)
    assert await meter.budget() == (cost, 0)
    assert await meter.balances() == {"tenant:acme:receivable": cost, "revenue:tokens": -cost}


async def test_a_budget_without_room_refuses_and_nothing_is_written(meter: Meter) -> None:
    await meter.set_price()
    await meter.set_budget(2 * WORST_CASE_PICO - 1)
    recorder = await meter.recorder()
    with pytest.raises(BudgetExceededError):
        await recorder.begin([meter.request("r1"), meter.request("r2")])
    assert (await meter.num_pending(), await meter.budget()) == (0, (0, 0))
    assert await meter.balances() == {}
    await recorder.begin([meter.request("r3")])
    assert await meter.budget() == (0, WORST_CASE_PICO)


async def test_parallel_requests_never_overshoot_a_budget(meter: Meter) -> None:
    await meter.set_price()
    await meter.set_budget(10 * WORST_CASE_PICO)
    recorder = await meter.recorder()

    async def one(number: int) -> bool:
        req = meter.request(f"r{number}")
        try:
            await recorder.begin([req])
        except BudgetExceededError:
            return False
        await recorder.finish(req, Usage(10, 20), "length", "ok")
        return True

    passed = sum(await asyncio.gather(*(one(number) for number in range(30))))
    assert passed == 10
    assert await meter.budget() == (10 * WORST_CASE_PICO, 0)
    assert sum(event.amount_pico for event in await meter.events()) == 10 * WORST_CASE_PICO


async def test_the_price_of_the_admission_holds_when_it_changes_meanwhile(meter: Meter) -> None:
    await meter.set_price()
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1")])
    async with meter.database.writing() as session:
        now = await db_now_ms(session) // 1000
        dearer = PriceTerms("tiny", Rates(500, 500, 500))
        await publish(session, "dearer", now + 1, [dearer])
    while True:
        async with meter.database.reading() as session:
            if await db_now_ms(session) // 1000 > now:
                break
        await asyncio.sleep(0.05)
    await recorder.begin([meter.request("r2")])
    for event_id in ("r1", "r2"):
        await recorder.finish(meter.request(event_id), Usage(10, 0), "stop", "ok")
    assert [event.amount_pico for event in await meter.events()] == [50, 5000]


async def test_a_request_the_engine_never_took_is_forgotten(meter: Meter) -> None:
    await meter.set_price()
    await meter.set_budget(1000)
    recorder = await meter.recorder()
    both = [meter.request("r1"), meter.request("r2")]
    await recorder.begin(both)
    for _ in range(2):
        await recorder.forget(both[1:])
    assert not await recorder.finish(both[1], Usage(1, 1), "stop", "ok")
    assert (await meter.events(), await meter.num_pending()) == ([], 1)
    assert await meter.budget() == (0, WORST_CASE_PICO)
    assert (await meter.balances())["holds"] == -WORST_CASE_PICO


async def test_what_a_crash_leaves_is_lost_and_free(meter: Meter) -> None:
    await meter.set_price()
    await meter.set_budget(1000)
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1"), meter.request("r2")])
    await recorder.finish(meter.request("r1"), Usage(1, 2), "length", "ok")
    again = await meter.recorder()
    assert await again.replicas.lose_all() == 0
    first, second = await meter.events()
    assert [first.outcome, second.outcome] == ["ok", "lost"]
    assert (second.prompt_tokens, second.completion_tokens, second.amount_pico) == (0, 0, 0)
    # in the dead process's own sequence, which is whole then
    assert (second.replica_id, second.replica_seq) == (recorder.replica_id, 2)
    assert await meter.num_pending() == 0
    assert await meter.budget() == (5 + 14, 0)
    assert "holds" not in await meter.balances()


async def test_only_a_silent_process_is_given_up_by_the_others(meter: Meter) -> None:
    dead, lives = await meter.recorder(), await meter.recorder(is_alone=False)
    await dead.begin([meter.request("r1")])
    await lives.begin([meter.request("r2")])
    assert await lives.replicas.lose_silent(60.0) == 0
    await asyncio.sleep(0.3)
    await lives.beat()
    assert await lives.replicas.lose_silent(0.25) == 1
    assert [event.event_id for event in await meter.events()] == ["r1"]
    # it was only halted: its request is over, and what it does next counts
    assert not await dead.finish(meter.request("r1"), Usage(1, 1), "stop", "ok")
    before = dead.replica_id
    await dead.beat()
    assert dead.replica_id != before
    await dead.begin([meter.request("r3")])
    assert await lives.replicas.lose_silent(60.0) == 0
    assert await dead.finish(meter.request("r3"), Usage(1, 1), "stop", "ok")


async def test_what_was_begun_for_nobody_is_released(meter: Meter) -> None:
    await meter.set_price()
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1"), meter.request("r2")])
    recorder._open.discard("r2")  # as if the caller had been cancelled after the commit
    assert await recorder.sweep() == 1
    assert await recorder.sweep() == 0
    assert (await meter.num_pending(), await meter.events()) == (1, [])
    assert (await meter.balances())["holds"] == -WORST_CASE_PICO


async def test_a_cancelled_begin_leaves_nothing_after_the_sweep(meter: Meter) -> None:
    await meter.set_price()
    recorder = await meter.recorder()
    for number in range(20):
        beginning = asyncio.create_task(recorder.begin([meter.request(f"r{number}")]))
        await asyncio.sleep(number * 0.0005)
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        if not beginning.cancelled():
            await recorder.forget([meter.request(f"r{number}")])
    await recorder.sweep()
    assert (await meter.num_pending(), await meter.balances()) == (0, {})


async def test_an_event_is_of_when_its_request_ended_not_of_when_it_was_written(
    meter: Meter,
) -> None:
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1")])
    await asyncio.sleep(0.2)
    await recorder.finish(meter.request("r1"), Usage(1, 1), "stop", "ok", time.monotonic() - 0.1)
    (event,) = await meter.events()
    assert 90 <= event.recorded_at_ms - event.ended_at_ms < 5000
    await recorder.begin([meter.request("r2")])
    await recorder.finish(meter.request("r2"), Usage(1, 1), "stop", "ok", time.monotonic() - 900)
    assert (await meter.events())[1].ended_at_ms == (await meter.events())[1].started_at_ms


async def test_each_sink_gets_a_message_with_the_event(meter: Meter) -> None:
    recorder = await meter.recorder("file", "web")
    await recorder.begin([meter.request("r1")])
    assert await meter.all(OutboxMessage) == []
    await recorder.finish(meter.request("r1"), Usage(5, 7), "stop", "ok")
    rows = [row for row in await meter.all(OutboxMessage) if isinstance(row, OutboxMessage)]
    assert sorted((row.sink, row.id) for row in rows) == [("file", "r1"), ("web", "r1")]
    assert all(row.payload["completion_tokens"] == 7 for row in rows)


async def test_many_at_once_lose_nothing_and_leave_no_gap(meter: Meter) -> None:
    await meter.set_price()
    recorder = await meter.recorder()

    async def one(i: int) -> None:
        req = meter.request(f"r{i:02}")
        await recorder.begin([req])
        await recorder.finish(req, Usage(1, i), "stop", "ok")

    await asyncio.gather(*(one(i) for i in range(50)))
    events = await meter.events()
    assert sorted(event.replica_seq for event in events) == list(range(1, 51))
    (replica,) = await meter.all(Replica)
    assert isinstance(replica, Replica)
    assert replica.last_seq == 50
    owner = TenantOwner(meter.tenant_id)
    async with meter.database.reading() as session:
        reports = ReportRepository(session)
        (total,) = (await reports.sum_up_between(owner, None, None, ["model"])).values()
        none = await reports.sum_up_between(TenantOwner("other"), None, None, ["model"])
        late = await reports.sum_up_between(owner, 2**35, None, ["model"])
    assert (total.num_requests, total.completion_tokens) == (50, sum(range(50)))
    assert none == {}
    assert late == {}
    assert await meter.balances() == {
        "tenant:acme:receivable": 50 * 5 + sum(range(50)) * 7,
        "revenue:tokens": -(50 * 5 + sum(range(50)) * 7),
    }


async def test_the_rows_of_a_request_are_its_tenants_alone(meter: Meter) -> None:
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1")])
    wanted = [("r1", TenantOwner("other"))]
    assert await meter.database.transact(lambda tx: take_pending(tx, wanted)) == [None]
    assert await meter.num_pending() == 1


async def test_postgresql_refuses_a_ledger_that_does_not_add_up(meter: Meter) -> None:
    if meter.database.is_sqlite:
        return  # there the ledger's own check and `verify` have to do
    await meter.set_price()
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1")])

    async def tamper(session: AsyncSession) -> None:
        connection = await session.connection()
        await connection.execute(
            text("UPDATE ledger_entries SET amount_pico = 1 WHERE account = 'holds'")
        )

    with pytest.raises(IntegrityError, match="adds up to 191, not to 0"):
        await meter.database.write(tamper)
    assert (await meter.balances())["holds"] == -WORST_CASE_PICO


async def test_a_process_whose_clock_is_wrong_writes_the_databases_time(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with meter.database.reading() as session:
        before_ms = await db_now_ms(session)
    real_time = time.time
    for skew_s in (-3600, 3600):
        monkeypatch.setattr(time, "time", lambda skew_s=skew_s: real_time() + skew_s)
        monkeypatch.setattr("weft.db.ids.now_ms", lambda skew_s=skew_s: 1000 * skew_s)
        recorder = await meter.recorder("file", is_alone=False)
        await recorder.begin([meter.request(f"r{skew_s}")])
        await recorder.finish(meter.request(f"r{skew_s}"), Usage(1, 1), "stop", "ok")
    async with meter.database.reading() as session:
        after_ms = await db_now_ms(session)
    for event in await meter.events():
        assert before_ms <= event.started_at_ms <= event.ended_at_ms <= event.recorded_at_ms
        assert event.recorded_at_ms <= after_ms
