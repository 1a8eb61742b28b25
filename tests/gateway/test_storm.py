"""Streams that are dropped by the hundreds: each is billed for exactly what the engine has made."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from tests.gateway.site import Site
from tests.tiny import BASE
from tests.usage.conftest import Meter

from weft.app import build_engine, create_app
from weft.db.database import Database
from weft.db.urls import sqlite_url
from weft.demo import BASE_DIR
from weft.messages import EngineOutput, EngineRequest
from weft.server.http import background_server
from weft.settings import MIB, ServerSettings
from weft.tokenizer import BaseTokenizer
from weft.usage.rollups import roll_up
from weft.usage.verification import CheckResult, verify

INPUT_RATE, CACHED_RATE, OUTPUT_RATE = 5, 2, 7


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the server starts: it writes down often what the engine has made."""
    monkeypatch.setattr("weft.usage.metering.BEAT_S", 0.2)


async def set_price_and_budget(site: Any) -> None:
    database = Database(sqlite_url(site.settings.database_file))
    meter = Meter(database, site.operator("GET", "/admin/v1/tenants").json()["data"][0]["id"])
    await meter.set_price(
        input_rate=INPUT_RATE, cached_input_rate=CACHED_RATE, output_rate=OUTPUT_RATE
    )
    await meter.set_budget(10**12)
    await database.close()


class RecordedEngine:
    """A real engine, and the last output of each of its requests."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.finished: dict[str, EngineOutput] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        return self._recorded(await self._engine.generate(req))

    async def _recorded(self, outputs: AsyncIterator[EngineOutput]) -> AsyncIterator[EngineOutput]:
        async for output in outputs:
            if output.is_last:
                self.finished[output.request_id] = output
            yield output


@pytest.fixture
def real_site(settings: ServerSettings) -> Iterator[Site]:
    """The demo base's engine behind the server."""
    settings = replace(
        settings, base_dir=BASE_DIR, base_name=BASE, kv_bytes=64 * MIB, adapter_bytes=16 * MIB
    )
    with closing(build_engine(settings)) as built:
        engine: Any = RecordedEngine(built)
        app = create_app(settings, engine, BaseTokenizer.from_dir(BASE_DIR))
        with background_server(app, settings) as url:
            operator_key = (settings.data_dir / "operator_key").read_text().strip()
            http = httpx2.Client(base_url=url, timeout=20.0)
            site = Site(url, app, engine, settings, operator_key, http)
            yield site
            site.close()


async def drop_streams(
    site: Any, key: str, num_streams: int, num_open: int, longest_s: float, seed: int
) -> None:
    """Open streams, so many at a time, and leave each after a while, most of them in the middle of
    an answer."""
    host, port = site.url.removeprefix("http://").split(":")
    choose = random.Random(seed)
    places = asyncio.Semaphore(num_open)
    body = ('{"model":"tiny","stream":true,"max_tokens":40,"prompt":"' + "x" * 40 + '"}').encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()

    async def one(stay_s: float) -> None:
        async with places:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head + body)
            await asyncio.sleep(stay_s)
            sock: socket.socket = writer.get_extra_info("socket")
            # no good-bye: the connection is reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()

    stays = [choose.uniform(0.0, longest_s) for _ in range(num_streams)]
    await asyncio.gather(*(one(stay_s) for stay_s in stays))


async def wait_until_idle(site: Any, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while site.app.state.gateway.num_active or site.engine.snapshot().num_running:
            await asyncio.sleep(0.02)


async def books(site: Any) -> tuple[list[Any], dict[str, int], tuple[int, int], list[CheckResult]]:
    """Events, balances, the budget, and what verification says."""
    database = Database(sqlite_url(site.settings.database_file))
    meter = Meter(database, "")
    await roll_up(database)
    found = await meter.events(), await meter.balances(), await meter.budget()
    results = await verify(database)
    await database.close()
    return *found, results


async def wait_for_checkpoint(site: Any, timeout_s: float = 30.0) -> None:
    """Until what the engine has made is written and known to be all."""
    async with asyncio.timeout(timeout_s):
        while True:
            results = (await books(site))[-1]
            (engines,) = (result.note for result in results if result.name == "engines")
            if engines.startswith("1 of 1 to the token"):
                return
            await asyncio.sleep(0.1)


async def ride_out(
    site: Any,
    key: str,
    num_streams: int,
    *,
    num_open: int = 100,
    longest_s: float = 0.5,
    seed: int = 19,
) -> None:
    await set_price_and_budget(site)
    await drop_streams(site, key, num_streams, num_open, longest_s, seed)
    await wait_until_idle(site)
    await wait_for_checkpoint(site)
    events, balances, (spent, held), results = await books(site)
    made = site.engine.finished
    assert {event.event_id for event in events} == set(made)
    for event in events:
        usage = made[event.event_id].usage
        counted = (event.prompt_tokens, event.cached_prompt_tokens, event.completion_tokens)
        assert counted == (
            usage.num_prompt_tokens, usage.num_cached_tokens, usage.num_completion_tokens,
        )  # fmt: skip
        assert event.amount_pico == (
            (usage.num_prompt_tokens - usage.num_cached_tokens) * INPUT_RATE
            + usage.num_cached_tokens * CACHED_RATE
            + usage.num_completion_tokens * OUTPUT_RATE
        )
    assert {event.outcome for event in events} <= {"ok", "cancelled"}
    assert sum(event.outcome == "cancelled" for event in events) > len(events) // 2
    assert (spent, held) == (sum(event.amount_pico for event in events), 0)
    assert "holds" not in balances
    assert [result for result in results if not result.is_clean] == []


@pytest.mark.slow
async def test_dropped_streams_are_billed_for_what_the_engine_made(site: Any, acme: str) -> None:
    site.engine.delay_s = 0.01
    await ride_out(site, acme, 60)


@pytest.mark.verify
async def test_a_thousand_dropped_streams_are_billed_for_what_the_engine_made(
    site: Any, acme: str
) -> None:
    site.engine.delay_s = 0.01
    await ride_out(site, acme, 1000)


@pytest.mark.verify
@pytest.mark.parametrize("seed", range(4))
async def test_1000_streams_of_a_real_engine_that_are_dropped_250_at_once(
    real_site: Any, seed: int
) -> None:
    key = real_site.tenant("acme")
    await ride_out(real_site, key, 250, num_open=250, longest_s=4.0, seed=seed)
