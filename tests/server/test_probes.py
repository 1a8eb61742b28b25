"""The port for probes answers whatever the main event loop does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from weft.server import probes
from weft.server.http import bind
from weft.server.probes import probe_server


class Watch:
    """What the probes ask, as the test says."""

    has_started = False
    fault = ""

    async def find_fault(self) -> str:
        return self.fault

    async def render_metrics(self) -> bytes:
        return b"weft_answer 42.0\n"


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The main event loop, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def http(watch: Watch, loop: asyncio.AbstractEventLoop) -> Iterator[httpx2.Client]:
    with bind("127.0.0.1", 0) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with probe_server(watch, sock, loop), httpx2.Client(base_url=url, timeout=10) as http:
            end = time.monotonic() + 10
            while True:
                try:
                    http.get("/livez")
                    break
                except httpx2.ConnectError:
                    assert time.monotonic() < end
                    time.sleep(0.01)
            yield http


def test_each_probe_says_what_is_wrong(http: httpx2.Client, watch: Watch) -> None:
    assert http.get("/startupz").status_code == 503
    watch.has_started = True
    assert http.get("/startupz").json() == {"status": "ok"}
    assert http.get("/readyz").status_code == 200
    watch.fault = "The database does not answer."
    answer = http.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, watch.fault)
    assert http.get("/livez").status_code == 200
    assert http.get("/metrics").text == "weft_answer 42.0\n"
    assert http.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    assert http.get("/v1/models").status_code == 404
    assert http.post("/livez").status_code == 405


def test_an_event_loop_that_hangs_fails_the_probes_in_time(
    http: httpx2.Client, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LIVENESS_TIMEOUT_S", "_READINESS_TIMEOUT_S", "_METRICS_TIMEOUT_S"):
        monkeypatch.setattr(probes, name, 0.1)
    goes_on = threading.Event()
    loop.call_soon_threadsafe(goes_on.wait)
    try:
        for probe in ("/livez", "/readyz", "/metrics"):
            answer = http.get(probe)
            assert answer.status_code == 503, probe
            assert "0 s" in answer.json()["reason"]
    finally:
        goes_on.set()
    assert http.get("/livez").status_code == 200
