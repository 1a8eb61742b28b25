"""Rollups are the events, added up; whatever happens twice changes nothing."""

from __future__ import annotations

import asyncio
import calendar
from collections.abc import Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from tests.usage.conftest import Meter

from weft.messages import Usage
from weft.usage import rollups
from weft.usage.models import UsageRollup
from weft.usage.rollups import roll_up
from weft.usage.verification import check_rollups

HOUR_S, DAY_S = 3600, 86_400
WIDTHS_S = (60, HOUR_S, DAY_S)
# the last ms of a month, the first of the next; both sides of a change to summer time in Europe
EDGES_MS = [
    calendar.timegm((2026, 2, 28, 23, 59, 59)) * 1000 + 999,
    calendar.timegm((2026, 3, 1, 0, 0, 0)) * 1000,
    calendar.timegm((2026, 3, 29, 0, 59, 59)) * 1000 + 999,
    calendar.timegm((2026, 3, 29, 1, 0, 0)) * 1000,
    calendar.timegm((2026, 3, 29, 1, 59, 59)) * 1000 + 999,
]


async def make_events(meter: Meter, times_ms: Sequence[int], first: int = 0) -> None:
    """Event number n has n + 1 completion tokens and ended at the n-th time."""
    recorder = await meter.recorder(is_alone=False)
    for number, ended_at_ms in enumerate(times_ms, first):
        req = meter.request(f"r{number:03}")
        await recorder.begin([req])
        await recorder.finish(req, Usage(10, number + 1, 1), "stop", "ok")
        await set_end(meter, req.event_id, ended_at_ms)


async def set_end(meter: Meter, event_id: str, ended_at_ms: int) -> None:
    """As a process whose clock says so would have written it."""

    async def job(session: AsyncSession) -> None:
        connection = await session.connection()
        await connection.execute(
            text("UPDATE usage_events SET ended_at_ms = :at WHERE event_id = :id"),
            {"at": ended_at_ms, "id": event_id},
        )

    await meter.database.write(job)


async def rolled(meter: Meter, width_s: int = HOUR_S) -> list[tuple[int, int, int, int]]:
    """(start, requests, completion tokens, amount)."""
    rows = [row for row in await meter.all(UsageRollup) if isinstance(row, UsageRollup)]
    return sorted(
        (row.start_at, row.num_requests, row.completion_tokens, row.amount_pico)
        for row in rows
        if row.width_s == width_s
    )


async def is_clean(meter: Meter) -> bool:
    async with meter.database.snapshot() as session:
        return (await check_rollups(session)).is_clean


async def test_hours_begin_where_utc_says_on_every_day(meter: Meter) -> None:
    await meter.set_price()
    await make_events(meter, EDGES_MS)
    await roll_up(meter.database)
    input_pico = 9 * 5 + 2
    assert await rolled(meter) == [
        (EDGES_MS[0] // 1000 // HOUR_S * HOUR_S, 1, 1, input_pico + 7),
        (EDGES_MS[1] // 1000, 1, 2, input_pico + 14),
        (EDGES_MS[2] // 1000 // HOUR_S * HOUR_S, 1, 3, input_pico + 21),
        (EDGES_MS[3] // 1000, 2, 4 + 5, 2 * input_pico + 63),
    ]
    assert await is_clean(meter)


async def test_rolling_up_again_changes_nothing_and_costs_nothing(meter: Meter) -> None:
    await make_events(meter, EDGES_MS)
    assert await roll_up(meter.database) == 5 + 4 + 3, "minutes, hours and days"
    before = [await rolled(meter, width_s) for width_s in WIDTHS_S]
    assert await roll_up(meter.database) == 0
    assert [await rolled(meter, width_s) for width_s in WIDTHS_S] == before
    assert [len(rows) for rows in before] == [5, 4, 3]


async def test_late_events_are_added_to_an_hour_that_was_rolled_up(meter: Meter) -> None:
    await make_events(meter, EDGES_MS[:1])
    await roll_up(meter.database)
    await make_events(meter, EDGES_MS[:1], first=1)
    assert await is_clean(meter), "an hour that is due is no difference"
    assert await roll_up(meter.database) == 3
    for width_s in WIDTHS_S:
        assert [row[1:3] for row in await rolled(meter, width_s)] == [(2, 3)]
    assert await is_clean(meter)


async def test_long_histories_are_taken_in_parts(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollups, "MAX_EVENTS", 2)
    await make_events(meter, [EDGES_MS[0] + hour * 3_600_000 for hour in range(5)])
    monkeypatch.setattr(rollups, "MAX_SPANS", 2)
    await roll_up(meter.database)
    assert [row[2] for row in await rolled(meter)] == [1, 2, 3, 4, 5]


async def test_what_is_not_over_is_in_minutes_only(meter: Meter) -> None:
    await make_events(meter, EDGES_MS[:1])
    recorder = await meter.recorder(is_alone=False)
    req = meter.request("now")
    await recorder.begin([req])
    await recorder.finish(req, Usage(10, 5, 0), "stop", "ok")
    await roll_up(meter.database)
    assert [len(await rolled(meter, width_s)) for width_s in WIDTHS_S] == [2, 1, 1]
    assert await is_clean(meter)


async def test_a_day_waits_for_its_hours(meter: Meter) -> None:
    await make_events(meter, EDGES_MS[:1])
    async with meter.database.writing() as session:
        await rollups._roll_up_minutes(session)
        assert await rollups._roll_up_days(session) == 0
        assert await rollups._roll_up_hours(session) == 1
        assert await rollups._roll_up_days(session) == 1
    assert await is_clean(meter)


@pytest.mark.parametrize("width_s", WIDTHS_S)
async def test_verification_looks_at_every_width(meter: Meter, width_s: int) -> None:
    await make_events(meter, EDGES_MS)
    await roll_up(meter.database)
    async with meter.database.writing() as session:
        connection = await session.connection()
        await connection.execute(
            text("UPDATE usage_rollups SET prompt_tokens = 1 WHERE width_s = :width_s"),
            {"width_s": width_s},
        )
    assert not await is_clean(meter)


async def test_two_at_once_do_no_harm(meter: Meter) -> None:
    await make_events(meter, EDGES_MS)
    await asyncio.gather(*(roll_up(meter.database) for _ in range(4)))
    assert await roll_up(meter.database) == 0
    assert sum(row[1] for row in await rolled(meter)) == len(EDGES_MS)
    assert await is_clean(meter)
