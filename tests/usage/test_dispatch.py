"""Every message is delivered at least once and is the same each time, whoever delivers it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from tests.usage.conftest import Meter

from weft.messages import Usage
from weft.usage import dispatch
from weft.usage.dispatch import Dispatcher
from weft.usage.models import OutboxMessage
from weft.usage.sinks import FileSink, HttpSink, Message, SinkError, create_sinks


@dataclass
class Memory:
    """A sink that notes what it gets, and fails as it is told."""

    fails: int = 0
    seen: list[str] = field(default_factory=list)

    async def deliver(self, messages: Sequence[Message]) -> None:
        await asyncio.sleep(0)
        self.seen += [message.id for message in messages]
        if self.fails:
            self.fails -= 1
            raise SinkError("not now")

    async def close(self) -> None: ...


async def record(meter: Meter, count: int, *sinks: str) -> set[str]:
    recorder = await meter.recorder(*sinks)
    requests = [meter.request(f"r{number:03}") for number in range(count)]
    await recorder.begin(requests)
    for req in requests:
        await recorder.finish(req, Usage(10, 20, 3), "stop", "ok")
    return {req.event_id for req in requests}


async def set_columns(meter: Meter, assignment: str) -> None:
    async def job(session: AsyncSession) -> None:
        await (await session.connection()).execute(text(f"UPDATE outbox SET {assignment}"))

    await meter.database.write(job)


async def test_each_message_is_delivered_once_where_nothing_fails(meter: Meter) -> None:
    ids = await record(meter, 7, "memory", "another")
    memory = Memory()
    dispatcher = Dispatcher(meter.database, {"memory": memory})
    assert (await dispatcher.deliver_due(), await dispatcher.deliver_due()) == (7, 0)
    assert Counter(memory.seen) == Counter(ids)
    assert dispatcher.counts.num_delivered == 7


async def test_dispatchers_beside_each_other_share_the_work(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "BATCH_SIZE", 3)
    ids = await record(meter, 30, "memory")
    memory = Memory()
    dispatchers = [Dispatcher(meter.database, {"memory": memory}) for _ in range(4)]
    delivered = await asyncio.gather(*(each.deliver_due() for each in dispatchers))
    assert sum(delivered) == 30
    assert Counter(memory.seen) == Counter(ids)


async def test_a_sink_that_fails_gets_its_messages_later_and_holds_up_no_other(
    meter: Meter,
) -> None:
    ids = await record(meter, 3, "bad", "good")
    bad, good = Memory(fails=1), Memory()
    dispatcher = Dispatcher(meter.database, {"bad": bad, "good": good})
    assert await dispatcher.deliver_due() == 3
    assert set(good.seen) == ids
    assert await dispatcher.deliver_due() == 0, "not before its time"
    assert dispatcher.counts.num_failures == 1
    await set_columns(meter, "due_at_ms = 0")
    assert await dispatcher.deliver_due() == 3
    assert Counter(bad.seen) == Counter([*ids, *ids])


async def test_what_a_dead_dispatcher_had_claimed_is_delivered_when_its_claim_is_over(
    meter: Meter,
) -> None:
    ids = await record(meter, 3, "memory")
    dead = Dispatcher(meter.database, {"memory": Memory()})
    assert len(await dead._claim("memory")) == 3
    memory = Memory()
    dispatcher = Dispatcher(meter.database, {"memory": memory})
    assert await dispatcher.deliver_due() == 0
    await set_columns(meter, "claimed_until_ms = 1")
    assert await dispatcher.deliver_due() == 3
    assert set(memory.seen) == ids


async def test_what_was_delivered_long_ago_is_forgotten(meter: Meter) -> None:
    await record(meter, 3, "memory", "another")
    dispatcher = Dispatcher(meter.database, {"memory": Memory()})
    await dispatcher.deliver_due()
    assert await dispatcher.delete_old() == 0
    await set_columns(meter, "delivered_at_ms = 1 WHERE sink = 'memory'")
    assert await dispatcher.delete_old() == 3
    rows = [row for row in await meter.all(OutboxMessage) if isinstance(row, OutboxMessage)]
    assert {row.sink for row in rows} == {"another"}


def message(id_: str) -> Message:
    return Message(
        id_, "usage.event", "acme", {"ended_at_ms": 1_763_762_400_001, "replica_id": "r"}
    )


async def test_a_file_gets_a_line_for_each_and_drops_what_a_crash_tore(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "usage.jsonl")
    await sink.deliver([message("a"), message("b")])
    with (tmp_path / "usage.jsonl").open("ab") as file:
        file.write(b'{"id":"torn' + b"x" * 200_000)
    await sink.deliver([message("c")])
    lines = [json.loads(line) for line in (tmp_path / "usage.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert lines[0] == {
        "specversion": "1.0",
        "id": "a",
        "source": "urn:weft:r",
        "type": "weft.usage.event",
        "subject": "acme",
        "time": "2025-11-21T22:00:00.001Z",
        "datacontenttype": "application/json",
        "data": {"ended_at_ms": 1_763_762_400_001, "replica_id": "r"},
    }
    assert (tmp_path / "usage.jsonl").stat().st_mode & 0o777 == 0o600
    with pytest.raises(SinkError, match="cannot be written"):
        await FileSink(tmp_path / "missing" / "x").deliver([message("a")])


class Collector(BaseHTTPRequestHandler):
    """Notes what is posted, and answers with the next of `statuses`."""

    statuses: list[int]
    posted: list[tuple[str | None, str | None, list[dict[str, Any]]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        kind, token = self.headers["content-type"], self.headers["authorization"]
        self.posted.append((kind, token, json.loads(body)))
        self.send_response(self.statuses.pop(0))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None: ...


@pytest.fixture
async def collector() -> AsyncIterator[tuple[str, type[Collector]]]:
    class Handler(Collector):
        statuses: list[int] = []
        posted: list[tuple[str | None, str | None, list[dict[str, Any]]]] = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/events", Handler
        server.shutdown()
        thread.join()


async def test_a_server_gets_batches_of_cloud_events(
    collector: tuple[str, type[Collector]],
) -> None:
    url, handler = collector
    handler.statuses += [204, 503]
    sink = create_sinks({"web": url}, "secret")["web"]
    await sink.deliver([message("a"), message("b")])
    with pytest.raises(SinkError, match="answered 503"):
        await sink.deliver([message("c")])
    await sink.close()
    kind, token, events = handler.posted[0]
    assert (kind, token) == ("application/cloudevents-batch+json", "Bearer secret")
    assert [event["id"] for event in events] == ["a", "b"]


async def test_a_server_that_is_away_is_no_loss() -> None:
    sink = HttpSink("http://127.0.0.1:1/events", "secret")
    with pytest.raises(SinkError, match="cannot be reached: ConnectError"):
        await sink.deliver([message("a")])
    await sink.close()
