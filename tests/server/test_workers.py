"""Two workers that share one engine: they answer, they and the engine die and come back, and all
ends in good order."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx2
import pytest

from weft.demo import BASE_NAME

if TYPE_CHECKING:
    from tests.server.conftest import Site

FINISHED = "vllm:request_success_total"
GENERATED = "vllm:generation_tokens_total"


@pytest.fixture(scope="module")
def acme(site: Site) -> str:
    key = site.create_tenant("acme")
    assert site.upload(key, "shout").status_code == 201
    return key


def test_the_port_is_shared_and_one_place_tells_of_all(site: Site, acme: str) -> None:
    assert len(site.pids("worker_process")) == 2
    assert len(site.pids("engine_process")) == 1
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(site.ask, acme, "shout", "one two", max_tokens=8) for _ in range(24)]
        answers = [each.result() for each in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert site.metric(FINISHED) == 24
    tokens = sum(answer.json()["usage"]["completion_tokens"] for answer in answers)
    assert site.metric(GENERATED) >= tokens
    for probe in ("livez", "readyz", "startupz"):
        assert httpx2.get(f"{site.probes}/{probe}").json() == {"status": "ok"}
    assert httpx2.get(f"{site.url}/metrics").status_code == 404
    assert httpx2.get(f"{site.url}/readyz").status_code == 200
    with site.client(acme) as http:
        usage = http.get("/v1/usage").json()["data"][0]["results"]
    assert sum(row["num_model_requests"] for row in usage) == 24


@pytest.mark.verify
def test_a_worker_that_dies_is_replaced_and_its_requests_leave_the_engine(
    site: Site, acme: str
) -> None:
    finished = site.metric(FINISHED)
    before = set(site.pids("worker_process"))
    body = {
        "model": BASE_NAME, "prompt": "a b c", "stream": True, "max_tokens": 200,
        "ignore_eos": True,
    }  # fmt: skip
    with site.client(acme) as http, http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(httpx2.TransportError):
            list(lines)
    site.wait(lambda: _is_idle(site))
    site.wait(lambda: len(set(site.pids("worker_process")) - before) == 2 and site.is_ready())
    assert site.ask(acme, "shout", "one two").status_code == 200
    assert site.metric(FINISHED) == finished + 1, "what ended processes counted still counts"


def _is_idle(site: Site) -> bool:
    return site.metric("vllm:num_requests_running") == 0


@pytest.mark.verify
def test_an_engine_that_dies_is_started_again_and_refusals_say_so(site: Site, acme: str) -> None:
    (engine,) = site.pids("engine_process")
    os.kill(engine, signal.SIGKILL)
    site.wait(lambda: not site.is_ready())
    refused = site.ask(acme, "shout", "one two")
    if refused.status_code != 200:  # else it was back by then
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_stopped"
        assert int(refused.headers["retry-after"]) > 0
    site.wait(site.is_ready)
    assert site.ask(acme, "shout", "one two").status_code == 200
    assert site.pids("engine_process") != [engine]


def test_sigterm_drains_all_and_leaves_no_process(site: Site, acme: str) -> None:
    pids = [*site.pids("worker_process"), *site.pids("engine_process")]
    assert len(pids) == 3
    body = {
        "model": BASE_NAME, "prompt": "a b c", "stream": True, "max_tokens": 200,
        "ignore_eos": True,
    }  # fmt: skip
    with site.client(acme) as http, http.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert site.process is not None
        site.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert site.process.wait(60) == 0, site.log.read_text()
    end = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(0.05)
