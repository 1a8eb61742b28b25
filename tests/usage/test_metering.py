"""What goes on beside the requests while a server runs, on both databases."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from tests.gateway.echo import EchoEngine
from tests.usage.conftest import Meter

from weft.messages import Usage
from weft.usage.metering import Metering
from weft.usage.models import Replica, UsageRollup
from weft.usage.sinks import create_sinks


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BEAT_S": 0.05, "CHORES_S": 0.05, "DISPATCH_S": 0.05}.items():
        monkeypatch.setattr(f"weft.usage.metering.{name}", value)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_events_are_added_up_told_and_counted_while_the_server_runs(
    meter: Meter, tmp_path: Path
) -> None:
    file = tmp_path / "usage.jsonl"
    engine = EchoEngine()
    sinks = create_sinks({"file": f"file:{file}"}, None)
    metering = Metering(meter.database, engine, sinks, is_alone=True)
    async with metering.running():
        await metering.recorder.begin([meter.request("r1")])
        await metering.recorder.finish(meter.request("r1"), Usage(10, 3), "stop", "ok")

        async def is_told_and_rolled_up() -> bool:
            return file.exists() and bool(await meter.all(UsageRollup))

        await until(is_told_and_rolled_up)
    (event,) = await meter.events()
    assert event.engine_id == engine.info.engine_id
    assert json.loads(file.read_text())["id"] == "r1"
    kinds = {row.kind: row for row in await meter.all(Replica) if isinstance(row, Replica)}
    assert kinds["server"].closed_at_ms is not None
    assert kinds["engine"].id == engine.info.engine_id
    registry = CollectorRegistry()
    registry.register(metering.metrics)
    assert b"weft_usage_messages_delivered_total 1.0" in generate_latest(registry)


async def test_a_process_that_fell_silent_is_given_up_by_another_one(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = await meter.recorder()
    await dead.begin([meter.request("r1")])
    monkeypatch.setattr("weft.usage.metering.SILENCE_S", 0.5)
    lives = Metering(meter.database, EchoEngine(), {}, is_alone=False)
    async with lives.running():
        await lives.recorder.begin([meter.request("r2")])

        async def is_lost() -> bool:
            return bool(await meter.events())

        await until(is_lost)
        assert await lives.recorder.finish(meter.request("r2"), Usage(1, 1), "stop", "ok")
    assert [event.outcome for event in await meter.events()] == ["lost", "ok"]
    assert lives.counts.num_lost == 1


async def test_work_that_fails_is_tried_again(
    meter: Meter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metering = Metering(meter.database, EchoEngine(), {}, is_alone=True)
    beat, num_beats = metering.recorder.beat, 0

    async def fail_at_first() -> None:
        nonlocal num_beats
        num_beats += 1
        if num_beats == 1:
            raise OSError("the network is away")
        await beat()

    monkeypatch.setattr(metering.recorder, "beat", fail_at_first)

    async def has_beaten() -> bool:
        return num_beats >= 3

    async with metering.running():
        await until(has_beaten)
    assert "it is tried again" in caplog.text


async def test_a_difference_is_logged_and_counted(
    meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    metering = Metering(meter.database, EchoEngine(), {}, is_alone=True)
    recorder = await meter.recorder()
    await recorder.begin([meter.request("r1")])
    await recorder.finish(meter.request("r1"), Usage(10, 3), "stop", "ok")
    await metering.verify()
    assert metering.counts.num_differences == 0

    async def tamper(session: AsyncSession) -> None:
        await (await session.connection()).execute(text("UPDATE usage_events SET amount_pico = 9"))

    await meter.database.write(tamper)
    with caplog.at_level(logging.ERROR, "weft.usage"):
        await metering.verify()
    assert metering.counts.num_differences == 2
    assert "billing verification, ledger: event r1 costs 9 pico" in caplog.text
