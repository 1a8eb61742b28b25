"""PostgreSQL or Redis is stopped, dies or hangs while requests are served, and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Any

import httpx2
import psycopg
import pytest
from tests.gateway.echo import EchoEngine
from tests.gateway.site import Site
from tests.servers import LocalServer, PostgresServer, RedisServer, libpq_url
from tests.stores import PostgresDatabases
from tests.tiny import BASE

from weft.app import create_app
from weft.db import engines, hang
from weft.limits import redis_limiter
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tokenizer import BaseTokenizer
from weft.usage import metering

NUM_CALLERS = 6
UNAVAILABLE = ("database_unavailable", "limits_unavailable")


@pytest.fixture(scope="module")
def server(create_postgres: Callable[[], PostgresServer]) -> Iterator[PostgresServer]:
    server = create_postgres()
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def redis_server(create_redis: Callable[[], RedisServer]) -> Iterator[RedisServer]:
    server = create_redis()
    server.start()
    yield server
    server.close()


@pytest.fixture
def url(server: PostgresServer) -> str:
    return PostgresDatabases(server.url).create()


@pytest.fixture
def site(
    url: str,
    redis_server: RedisServer,
    tokenizer: BaseTokenizer,
    settings: ServerSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    monkeypatch.setattr(metering, "BEAT_S", 0.2)  # which sweeps up what nobody knows to be there
    monkeypatch.setattr(hang, "PATIENCE_S", 0.3)
    monkeypatch.setattr(hang, "ANSWER_S", 0.5)
    monkeypatch.setattr(engines, "CONNECT_TIMEOUT_S", 2)
    monkeypatch.setattr(redis_limiter, "TIMEOUT_S", 1.0)
    engine = EchoEngine()
    engine.delay_s = 0.002
    settings = changed(settings, database_url=url, redis_url=redis_server.url)
    with background_server(create_app(settings, engine, tokenizer), settings) as address:
        operator_key = (settings.data_dir / "operator_key").read_text().strip()
        http = httpx2.Client(base_url=address, timeout=20.0)
        running = Site(address, None, engine, settings, operator_key, http)  # type: ignore[arg-type]
        yield running
        running.close()


@dataclass
class Load:
    """Callers that ask without a pause, and what they were answered."""

    site: Site
    key: str
    answers: list[httpx2.Response] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._call) for _ in range(NUM_CALLERS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        body = {"model": BASE, "prompt": "the quick brown fox", "max_tokens": 8}
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx2.Client(base_url=self.site.url, timeout=20.0) as http:
            while not self._is_over.is_set():
                answer = http.post("/v1/completions", json=body, headers=headers)
                self.answers.append(answer)
                if answer.status_code != 200:
                    time.sleep(0.02)  # as one that backs off

    def wait_for(self, status_code: int, num_more: int) -> None:
        """Until so many more answers have this status."""
        num_before = len(self.answers)
        deadline = time.monotonic() + 20
        while sum(a.status_code == status_code for a in self.answers[num_before:]) < num_more:
            assert time.monotonic() < deadline, [a.text for a in self.answers[-3:]]
            time.sleep(0.01)


def rows(url: str, statement: str) -> list[Any]:
    with closing(psycopg.connect(libpq_url(url), autocommit=True)) as connection:
        return connection.execute(statement.encode()).fetchall()


def check_events(url: str, engine: EchoEngine, load: Load) -> None:
    """Each request that reached the engine is one event, with what the engine counted."""
    deadline = time.monotonic() + 30
    while rows(url, "SELECT event_id FROM usage_pending"):
        assert time.monotonic() < deadline, "pending rows are left"
        time.sleep(0.05)
    found = rows(
        url, "SELECT event_id, prompt_tokens, completion_tokens, outcome FROM usage_events"
    )
    counted = {
        request_id: (output.usage.num_prompt_tokens, output.usage.num_completion_tokens)
        for request_id, output in engine.finished.items()
    }
    assert len(counted) == len(engine.requests)
    assert {event: (prompt, completion) for event, prompt, completion, _ in found} == counted
    assert len(found) == len(counted)
    assert {outcome for *_, outcome in found} <= {"ok", "cancelled"}
    answered = [a.json()["usage"]["completion_tokens"] for a in load.answers if a.is_success]
    assert len(answered) <= len(counted)
    assert rows(url, "SELECT COALESCE(SUM(amount_pico), 0) FROM ledger_entries") == [(0,)]


def play(site: Site, server: LocalServer, url: str, num_rounds: int) -> None:
    """Stop and kill the server by turns, under load."""
    with Load(site, site.tenant("acme")) as load:
        load.wait_for(200, 30)
        for number in range(num_rounds):
            (server.kill if number % 2 else server.stop)()
            load.wait_for(503, 20)
            server.start()
            load.wait_for(200, 30)
    check_answers(load)
    check_events(url, site.engine, load)


def check_answers(load: Load) -> None:
    for answer in load.answers:
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] in UNAVAILABLE
            assert int(answer.headers["retry-after"]) >= 1


def test_no_event_is_lost_or_doubled_and_no_restart_is_needed(
    site: Site, server: PostgresServer, url: str
) -> None:
    play(site, server, url, num_rounds=2)


def test_without_redis_requests_are_refused_until_it_is_back(
    site: Site, redis_server: RedisServer, url: str
) -> None:
    play(site, redis_server, url, num_rounds=2)


@pytest.mark.parametrize(
    "which", ["server", pytest.param("redis_server", marks=pytest.mark.verify)]
)
def test_a_store_that_hangs_keeps_nobody_waiting(
    site: Site, url: str, which: str, request: pytest.FixtureRequest
) -> None:
    store: LocalServer = request.getfixturevalue(which)
    with Load(site, site.tenant("acme")) as load:
        load.wait_for(200, 30)
        with store.frozen():
            load.wait_for(503, NUM_CALLERS)
            assert site.http.get("/livez").status_code == 200
            answer = site.http.get("/readyz")
            assert (answer.status_code, "not answer" in answer.text) == (503, True), answer.text
        load.wait_for(200, 30)
    check_answers(load)
    check_events(url, site.engine, load)


@pytest.mark.verify
@pytest.mark.parametrize("part", range(4))
def test_nor_in_40_rounds(site: Site, server: PostgresServer, url: str, part: int) -> None:
    play(site, server, url, num_rounds=10)


@pytest.mark.verify
@pytest.mark.parametrize("part", range(4))
def test_nor_in_40_rounds_of_redis(
    site: Site, redis_server: RedisServer, url: str, part: int
) -> None:
    play(site, redis_server, url, num_rounds=10)
