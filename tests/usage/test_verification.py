"""What was written is verified clean, and every kind of tampering is found and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from tests.usage.conftest import Meter

from weft.messages import Usage
from weft.usage.models import Replica
from weft.usage.rollups import roll_up
from weft.usage.verification import CheckResult, verify


async def fill(meter: Meter) -> None:
    """Two events, one request that runs, and an engine that has counted all of it."""
    await meter.set_price()
    await meter.set_budget(100_000)
    recorder = await meter.recorder("file")
    recorder._engine_id = lambda: "engine"
    await recorder.begin([meter.request(name) for name in ("r1", "r2", "r3")])
    await recorder.finish(meter.request("r1"), Usage(10, 3, 4), "stop", "ok")
    await recorder.finish(meter.request("r2"), Usage(10, 20), "length", "ok")
    await meter.add(
        Replica(
            id="engine", kind="engine", started_at_ms=0, heartbeat_at_ms=0, last_seq=0,
            rolled_up_seq=0, checkpoint_at_ms=2**50, prompt_tokens=30, completion_tokens=25,
        )
    )  # fmt: skip
    await roll_up(meter.database)


async def differences(meter: Meter) -> dict[str, tuple[str, ...]]:
    return {
        check.name: check.differences
        for check in await verify(meter.database)
        if not check.is_clean
    }


async def tamper(meter: Meter, *statements: str) -> None:
    async def job(session: AsyncSession) -> None:
        connection = await session.connection()
        for statement in statements:
            await connection.execute(text(statement))

    await meter.database.write(job)


async def test_what_was_written_is_clean_while_requests_run(meter: Meter) -> None:
    await fill(meter)
    assert await differences(meter) == {}
    notes = {check.name: check.note for check in await verify(meter.database)}
    assert notes["holds"] == "1 running requests"
    assert notes["outbox"] == "waiting: 2 for file"
    assert notes["engines"] == "0 of 1 to the token, the others as bounds"


@pytest.mark.parametrize(
    ("check", "statements", "words"),
    [
        ("sequences", ["DELETE FROM usage_events WHERE event_id = 'r1'"], "missing: 1 to 1"),
        ("sequences", ["DELETE FROM usage_events WHERE event_id = 'r2'"], "missing: 2 to 2"),
        ("sequences", ["UPDATE usage_events SET replica_id = 'x'"], "of replica x, which is unk"),
        (
            "amounts",
            ["UPDATE usage_events SET completion_tokens = 2 WHERE event_id = 'r1'"],
            "event r1 costs 59 pico, its tokens at its price 52",
        ),
        (
            "ledger",
            ["UPDATE usage_events SET amount_pico = 1 WHERE event_id = 'r2'"],
            "event r2 costs 1 pico, the ledger says 190",
        ),
        (
            "ledger",
            ["DELETE FROM usage_events WHERE event_id = 'r2'"],
            "charges for event r2, which is not there",
        ),
        (
            "holds",
            [
                "DELETE FROM ledger_entries WHERE tx_id = 'r3:hold'",
                "DELETE FROM ledger_tx WHERE id = 'r3:hold'",
            ],
            "holds is at 0 pico, running requests hold -190",
        ),
        ("holds", ["DELETE FROM usage_pending"], "budget holds 190 pico, running requests hold 0"),
        ("holds", ["UPDATE budgets SET held_pico = 5"], "budget holds 5 pico"),
        (
            "budgets",
            ["UPDATE budgets SET spent_pico = spent_pico + 1"],
            "budget budget has spent 250 pico, its events cost 249",
        ),
        ("budgets", ["UPDATE usage_events SET amount_pico = 0"], "its events cost 0"),
        ("rollups", ["UPDATE usage_rollups SET prompt_tokens = 1"], "rollups have Counts"),
        ("rollups", ["DELETE FROM usage_rollups"], "num_requests=0"),
        (
            "engines",
            ["UPDATE replicas SET completion_tokens = 22 WHERE kind = 'engine'"],
            "made 30 prompt and 22 completion tokens, events have 20 and 23",
        ),
        ("outbox", ["UPDATE outbox SET id = 'gone' WHERE id = 'r1'"], "file has a message about"),
    ],
)
async def test_tampering_is_found_and_named(
    meter: Meter, check: str, statements: list[str], words: str
) -> None:
    await fill(meter)
    await tamper(meter, *statements)
    found = await differences(meter)
    assert any(words in sentence for sentence in found[check]), found


@pytest.mark.parametrize(
    ("kind", "subject_id"),
    [("project", "proj"), ("key", "key"), ("adapter", "adp"), ("base", "tiny")],
)
async def test_budgets_of_every_kind_are_verified(meter: Meter, kind: str, subject_id: str) -> None:
    await meter.set_price()
    await meter.set_budget(100_000)
    owner = "NULL" if kind == "base" else "tenant_id"
    change = f"subject_kind = '{kind}', subject_id = '{subject_id}', tenant_id = {owner}"
    await tamper(meter, f"UPDATE budgets SET {change}")
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1")])
    await recorder.finish(meter.request("r1"), Usage(10, 3, 4), "stop", "ok")
    assert (await meter.budget())[0] > 0
    assert "budgets" not in await differences(meter)
    await tamper(meter, "UPDATE budgets SET spent_pico = 0")
    assert "budgets" in await differences(meter)


async def test_what_began_before_a_budget_does_not_count_in_it(meter: Meter) -> None:
    await meter.set_price()
    recorder = await meter.recorder()
    await recorder.begin([meter.request("before")])
    await recorder.finish(meter.request("before"), Usage(10, 3), "stop", "ok")
    await meter.set_budget(100_000)
    await tamper(
        meter,
        "UPDATE usage_events SET started_at_ms = 1000000",
        "UPDATE budgets SET created_at = 1061",
    )
    assert "budgets" not in await differences(meter)
    # within a minute it is not known, and nothing else may be spent
    await tamper(meter, "UPDATE budgets SET created_at = 1030")
    assert "budgets" not in await differences(meter)
    await tamper(meter, "UPDATE budgets SET spent_pico = 10000")
    assert "budgets" in await differences(meter)


async def test_an_unbalanced_ledger_is_found(meter: Meter) -> None:
    if not meter.database.is_sqlite:
        return  # PostgreSQL does not let it come to that
    await fill(meter)
    await tamper(
        meter, "UPDATE ledger_entries SET amount_pico = -60 WHERE account = 'revenue:tokens'"
    )
    assert (
        "ledger transaction r1:settle adds up to -1, not to 0"
        in ((await differences(meter))["ledger"])
    )


async def test_when_nothing_runs_the_engine_has_made_exactly_what_is_billed(meter: Meter) -> None:
    await fill(meter)
    recorder = await meter.recorder(is_alone=False)
    await recorder.forget([meter.request("r3")])
    assert "engines" in await differences(meter)
    await tamper(
        meter,
        "UPDATE replicas SET prompt_tokens = 20, completion_tokens = 23 WHERE kind = 'engine'",
    )
    assert await differences(meter) == {}


async def test_checks_of_others_read_the_same_moment(meter: Meter) -> None:
    seen: list[AsyncSession] = []

    def check(name: str) -> Callable[[AsyncSession], object]:
        async def run(session: AsyncSession) -> CheckResult:
            seen.append(session)
            return CheckResult.of(name, "", [name] * 100)

        return run

    results = await verify(meter.database, [check("a"), check("b")])  # type: ignore[list-item]
    assert [result.name for result in results[-2:]] == ["a", "b"]
    assert seen[0] is seen[1]
    assert len(results[-1].differences) == 20
