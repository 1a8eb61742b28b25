"""Clients that go away, servers that shut down: the engine stops, and usage is still one event."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from weft.messages import EngineOutput, EngineRequest, SamplingParams, Usage

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 60}]}


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def events(site: Any) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(site.settings.database_file)
    try:
        rows = connection.execute(
            "SELECT event_id, outcome, finish_reason, prompt_tokens, completion_tokens, model, "
            "adapter_digest FROM usage_events ORDER BY event_id"
        )
        return rows.fetchall()
    finally:
        connection.close()


def num_pending(site: Any) -> int:
    connection = sqlite3.connect(site.settings.database_file)
    try:
        return int(connection.execute("SELECT count(*) FROM usage_pending").fetchone()[0])
    finally:
        connection.close()


def raw_post(
    site: Any,
    key: str,
    body: bytes,
    path: str = "/v1/chat/completions",
    content_type: str = "application/json",
    num_missing: int = 0,
) -> socket.socket:
    host, port = site.url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)))
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
        f"content-type: {content_type}\r\ncontent-length: {len(body) + num_missing}\r\n\r\n"
    )
    sock.sendall(head.encode() + body)
    return sock


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_disconnect_aborts_and_is_metered_with_the_engines_counts(
    site: Any, acme: str, stream: str
) -> None:
    site.engine.delay_s = 0.02
    text = "x" * 60
    body = f'{{"model":"tiny","stream":{stream},"messages":[{{"role":"user","content":"{text}"}}]}}'
    sock = raw_post(site, acme, body.encode())
    wait_for(lambda: site.engine.snapshot().num_generation_tokens >= 3)
    sock.close()
    wait_for(lambda: len(events(site)) == 1)
    (event,) = events(site)
    final = site.engine.finished[event[0]]
    assert final.usage.num_completion_tokens < 60
    assert event[1:5] == ("cancelled", "abort", 63, final.usage.num_completion_tokens)
    assert site.engine.aborted == [event[0]]
    assert num_pending(site) == 0


def test_a_client_that_closes_its_stream_stops_the_engine(site: Any, acme: str) -> None:
    site.engine.delay_s = 0.02
    stream = site.client(acme).chat.completions.create(**HELLO, stream=True)
    next(iter(stream))
    stream.close()
    wait_for(lambda: len(events(site)) == 1)
    assert events(site)[0][1] == "cancelled"


def test_every_outcome_is_exactly_one_event(site: Any, acme: str) -> None:
    post = "/v1/chat/completions"
    ok = site.call(acme, "POST", post, json=HELLO)
    site.call(acme, "POST", post, json={**HELLO, "max_tokens": 2, "stream": True})
    site.engine.fails_after = 1
    site.call(acme, "POST", post, json=HELLO)
    rows = events(site)
    assert [row[1:3] for row in rows] == [("ok", "stop"), ("ok", "length"), ("error", "error")]
    assert rows[0][0] == ok.headers["x-request-id"]
    assert [row[4] for row in rows] == [60, 2, 1]
    assert num_pending(site) == 0
    (result,) = site.usage(acme)
    assert result["num_model_requests"] == 3
    assert result["output_tokens"] == 63
    assert result["input_tokens"] == 3 * 63
    assert result["input_cached_tokens"] == 3


def create_generations(site: Any, recorder: Any, max_backlog_bytes: int) -> Any:
    from weft.gateway.generations import Generations

    gateway = site.app.state.gateway
    return Generations(site.engine, recorder, gateway.admission, gateway.metrics, max_backlog_bytes)


def test_a_reader_that_stops_is_cut_off_with_bounded_memory(site: Any, acme: str) -> None:
    from weft.gateway.generation import Generation, Job

    class Recorder:
        async def finish(self, *args: object) -> None: ...

    owner = create_generations(site, Recorder(), 5_000)

    async def flood() -> None:
        request = EngineRequest("r", "t", (1,), SamplingParams(max_tokens=2_000))
        generation = Generation(owner, [Job(request, None)])  # type: ignore[arg-type]

        async def outputs() -> Any:
            for _ in range(2_000):
                yield EngineOutput("r", "abcd", (1,), Usage(1, 1))
            yield EngineOutput("r", "", (), Usage(1, 2_000), "length", is_last=True)

        await generation.pump(0, outputs())
        assert generation.is_too_slow
        assert await generation.read(0.1) == []

    asyncio.run(flood())
    assert "r" in site.engine.aborted


def test_unread_outputs_are_merged_without_losing_text(site: Any) -> None:
    from weft.gateway.generation import Generation, Job

    class Recorder:
        async def finish(self, *args: object) -> None: ...

    owner = create_generations(site, Recorder(), 2**20)

    async def run() -> None:
        request = EngineRequest("r", "t", (1,), SamplingParams(max_tokens=2_000))
        generation = Generation(owner, [Job(request, None)])  # type: ignore[arg-type]

        async def outputs() -> Any:
            for i in range(2_000):
                yield EngineOutput("r", chr(97 + i % 26), (i,), Usage(1, i))
            yield EngineOutput("r", "!", (), Usage(1, 2_000), "length", is_last=True)

        await generation.pump(0, outputs())
        read = [output for _, output in await generation.read(0.1)]
        assert len(read) < 300
        assert "".join(o.text for o in read) == "".join(chr(97 + i % 26) for i in range(2000)) + "!"
        assert read[-1].finish_reason == "length"
        assert generation.is_over

    asyncio.run(run())


def test_draining_refuses_new_requests_and_finishes_old_ones(site: Any, acme: str) -> None:
    site.engine.delay_s = 0.02
    answers: list[Any] = []
    running = threading.Thread(
        target=lambda: answers.append(
            site.call(acme, "POST", "/v1/chat/completions", json={**HELLO, "stream": True})
        )
    )
    running.start()
    wait_for(lambda: site.engine.snapshot().num_running == 1)
    gateway = site.app.state.gateway
    assert site.http.get("/readyz").status_code == 200
    drain = threading.Thread(target=lambda: asyncio.run(_drain(gateway)))
    gateway.is_draining = True
    ready = site.http.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "The server is draining.")
    assert site.http.get("/livez").status_code == 200
    refused = site.call(acme, "POST", "/v1/chat/completions", json=HELLO)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) > 0
    drain.start()
    drain.join()
    running.join()
    assert answers[0].text.endswith("data: [DONE]\n\n")
    wait_for(lambda: len(events(site)) == 1)
    assert events(site)[0][1] == "ok"


async def _drain(gateway: Any) -> None:
    await gateway.engine.drain(10.0)


def test_past_the_deadline_a_stream_ends_with_an_error_frame(site: Any, acme: str) -> None:
    site.engine.delay_s = 0.05
    answers: list[Any] = []
    running = threading.Thread(
        target=lambda: answers.append(
            site.call(acme, "POST", "/v1/chat/completions", json={**HELLO, "stream": True})
        )
    )
    running.start()
    wait_for(lambda: site.engine.snapshot().num_generation_tokens >= 2)
    asyncio.run(site.engine.drain(0.0))
    running.join()
    assert '"code":"draining"' in answers[0].text
    assert "[DONE]" not in answers[0].text
    wait_for(lambda: len(events(site)) == 1)
    assert events(site)[0][1] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
def test_usage_is_written_late_when_the_database_refuses_for_a_while(
    site: Any, acme: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = site.app.state.gateway.recorder
    finish, attempts = recorder.finish, []

    async def refuses_twice(*args: object) -> None:
        attempts.append(args)
        if len(attempts) <= 2:
            raise sqlite3.OperationalError("disk I/O error")  # no error of SQLAlchemy's
        await finish(*args)

    monkeypatch.setattr("weft.gateway.generations._FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(recorder, "finish", refuses_twice)
    answer = site.call(acme, "POST", "/v1/chat/completions", json={**HELLO, "stream": stream})
    assert answer.status_code == 200
    assert events(site) == []
    wait_for(lambda: len(events(site)) == 1)
    assert events(site)[0][1:5] == ("ok", "stop", 63, 60)
    assert (len(attempts), num_pending(site)) == (3, 0)
    assert "weft_usage_write_failures_total 2.0" in site.http.get("/metrics").text


def test_a_request_that_was_refused_is_forgotten_when_the_database_recovers(
    site: Any, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = site.app.state.gateway
    forget, attempts = gateway.recorder.forget, []

    async def refuses_once(*args: object) -> None:
        attempts.append(args)
        if len(attempts) == 1:
            raise sqlite3.OperationalError("database is locked")
        await forget(*args)

    monkeypatch.setattr("weft.gateway.generations._FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(gateway.recorder, "forget", refuses_once)
    site.engine.max_waiting = 1
    body = {"model": "tiny", "prompt": ["abc", "abc"]}
    assert site.call(acme, "POST", "/v1/completions", json=body).status_code == 503
    wait_for(lambda: num_pending(site) == 0)
    wait_for(lambda: gateway.num_active == 0)
    assert [event[1] for event in events(site)] == ["cancelled"]
    assert gateway._generations._running == set()


def test_an_upload_that_breaks_off_leaves_nothing_and_is_no_fault(
    site: Any, acme: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.create_adapter(acme, "bot")
    body = b'--b\r\ncontent-disposition: form-data; name="adapter_model.safetensors"\r\n\r\nx'
    kind = "multipart/form-data; boundary=b"
    uploads = site.settings.uploads_dir
    sock = raw_post(site, acme, body, "/v1/adapters/bot/versions", kind, num_missing=1000)
    wait_for(lambda: uploads.is_dir() and any(uploads.iterdir()))
    sock.close()
    wait_for(lambda: not any(uploads.iterdir()))
    assert site.http.get("/livez").status_code == 200
    assert not [record for record in caplog.records if record.name.startswith("weft")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_engine_dies_is_lost_and_free(site: Any, acme: str, stream: bool) -> None:
    site.engine.fails_after, site.engine.error_code = 2, "engine_failed"
    site.call(acme, "POST", "/v1/chat/completions", json={**HELLO, "stream": stream})
    wait_for(lambda: len(events(site)) == 1)
    assert events(site)[0][1:5] == ("lost", "error", 0, 0)
    assert num_pending(site) == 0
