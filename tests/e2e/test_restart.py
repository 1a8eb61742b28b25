"""Kill -9 and SIGTERM: what was acknowledged is there after the next start."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Server

PROMPT = "wolf apple tiger"

pytestmark = pytest.mark.slow


@pytest.fixture
def own_server(server: Server, tmp_path: Path) -> Iterator[Server]:
    """A server of this test alone, of the same kind as the shared one."""
    own = type(server)(tmp_path / "data")
    own.start()
    yield own
    if own.process is not None and own.process.poll() is None:
        own.send(signal.SIGTERM)


def total_requests(server: Server, key: str) -> int:
    with server.client(key) as http:
        results = http.get("/v1/usage").json()["data"][0]["results"]
    return sum(row["num_model_requests"] for row in results)


def test_everything_is_there_after_kill_9(own_server: Server) -> None:
    key = own_server.create_tenant("acme")
    version = own_server.upload(key, "shout").json()
    before = own_server.ask(key, "shout", PROMPT).json()
    assert before["choices"][0]["message"]["content"] == "WOLF APPLE TIGER"
    assert total_requests(own_server, key) == 1

    own_server.send(signal.SIGKILL)
    own_server.start()

    with own_server.client(key) as http:
        adapters = http.get("/v1/adapters").json()["data"]
        assert [adapter["name"] for adapter in adapters] == ["shout"]
        again = http.get("/v1/adapters/shout/versions/1").json()
        assert again["digest"] == version["digest"]
    with own_server.admin() as http:
        assert [t["name"] for t in http.get("/admin/v1/tenants").json()["data"]] == ["acme"]
    response = own_server.ask(key, "shout", PROMPT)
    assert response.headers["x-weft-adapter-digest"] == version["digest"]
    assert response.json()["choices"] == before["choices"]
    assert total_requests(own_server, key) == 2


def test_sigterm_lets_a_stream_finish_and_exits_with_0(own_server: Server) -> None:
    key = own_server.create_tenant("acme")
    body = {"model": "weft-demo-base", "prompt": "a", "max_tokens": 200, "ignore_eos": True}
    lines: list[str] = []
    started = threading.Event()

    def read() -> None:
        with (
            own_server.client(key) as http,
            http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response,
        ):
            for line in response.iter_lines():
                lines.append(line)
                started.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert started.wait(30)
    time.sleep(0.05)
    assert own_server.send(signal.SIGTERM) == 0
    thread.join()
    assert "data: [DONE]" in lines
    own_server.start()
    with own_server.client(key) as http:
        (row,) = http.get("/v1/usage").json()["data"][0]["results"]
    assert row["output_tokens"] == 200
