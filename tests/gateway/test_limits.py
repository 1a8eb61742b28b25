"""Rate limits over real HTTP: exactly what is allowed passes, and answers say what is left."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import pytest
from tests.gateway.echo import EchoEngine
from tests.gateway.limited import BODY, complete, set_limit
from tests.gateway.limited import create_tenant as create_limited_tenant
from tests.servers import RedisServer

from weft.app import create_app, prepare_data
from weft.messages import EngineQueueFullError
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tokenizer import BaseTokenizer

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hey"}]}
LIMIT = 10


@pytest.fixture
def settings(settings: ServerSettings, request: pytest.FixtureRequest) -> ServerSettings:
    """With the settings that the test is marked with."""
    return dataclasses.replace(settings, **getattr(request, "param", {}))


def with_settings(**changes: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings", [changes], indirect=True, ids=[""])


async def send_at_once(urls: list[str], key: str, num_requests: int) -> list[httpx2.Response]:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60.0) as client:
        sent = (
            client.post(f"{urls[i % len(urls)]}/v1/completions", json=BODY)
            for i in range(num_requests)
        )
        return await asyncio.gather(*sent)


def assert_exactly_the_limit_passed(answers: list[httpx2.Response]) -> None:
    assert Counter(answer.status_code for answer in answers) == {200: LIMIT, 429: 190}
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-requests"] == str(LIMIT)
        if answer.status_code == 429:
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert 0 < int(answer.headers["retry-after-ms"]) <= 60_100
            assert 0 < int(answer.headers["retry-after"]) <= 61
    passed = [answer for answer in answers if answer.status_code == 200]
    left = {int(answer.headers["x-ratelimit-remaining-requests"]) for answer in passed}
    assert left == set(range(LIMIT))


@with_settings(tenant_requests_per_minute=LIMIT)
def test_of_200_requests_at_once_exactly_the_limit_passes(site: Any, acme: str) -> None:
    assert_exactly_the_limit_passed(asyncio.run(send_at_once([site.url], acme, 200)))
    assert site.usage(acme)[0]["num_model_requests"] == LIMIT
    assert len(site.engine.requests) == LIMIT


def test_with_redis_exactly_the_limit_passes_one_gateway_and_four(
    settings: ServerSettings, tokenizer: BaseTokenizer, redis_url: str, postgres_url: str
) -> None:
    """Four gateways that share a database and a Redis, as workers do."""
    shared = dataclasses.replace(
        settings,
        tenant_requests_per_minute=LIMIT,
        redis_url=redis_url,
        database_url=postgres_url,
    )
    with gateways(shared, tokenizer, 4) as urls, httpx2.Client(base_url=urls[0]) as http:
        for num_gateways in (1, 4):
            key = create_tenant(http, shared, f"acme{num_gateways}")
            answers = asyncio.run(send_at_once(urls[:num_gateways], key, 200))
            assert_exactly_the_limit_passed(answers)


@contextmanager
def gateways(
    settings: ServerSettings, tokenizer: BaseTokenizer, num_gateways: int
) -> Iterator[list[str]]:
    """The URLs of gateways with the same secrets."""
    prepare_data(settings)
    with ExitStack() as stack:
        urls = []
        for number in range(num_gateways):
            data_dir = settings.data_dir.parent / f"data-{number}"
            shutil.copytree(settings.data_dir, data_dir)
            own = dataclasses.replace(settings, data_dir=data_dir)
            app = create_app(own, EchoEngine(), tokenizer)
            urls.append(stack.enter_context(background_server(app, own)))
        yield urls


@with_settings(tenant_max_running=2)
def test_a_place_is_free_when_its_request_has_ended_however_it_did(site: Any, acme: str) -> None:
    site.engine.admission_error = EngineQueueFullError(1)
    assert complete(site, acme).status_code == 503
    site.engine.admission_error = None
    site.engine.fails_after = 1
    assert complete(site, acme).status_code == 500
    site.engine.fails_after = None
    assert complete(site, acme, prompt=["hey", "you"]).status_code == 200
    refused = complete(site, acme, prompt=["a", "b", "c"])
    assert refused.status_code == 429
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    # of two that run, one goes away
    site.engine.delay_s = 0.05
    slow = BODY | {"max_tokens": 60, "prompt": "x" * 60, "stream": True}
    url, headers = f"{site.url}/v1/completions", {"authorization": f"Bearer {acme}"}
    with httpx2.Client(timeout=20.0) as http, ExitStack() as stack:
        streams = [
            stack.enter_context(http.stream("POST", url, json=slow, headers=headers))
            for _ in range(2)
        ]
        assert all(stream.status_code == 200 for stream in streams)
        refused = complete(site, acme)
        assert refused.status_code == 429
        assert refused.headers["retry-after-ms"] == "1000"
        streams[0].close()
        deadline = time.monotonic() + 5
        while (answer := complete(site, acme, max_tokens=1)).status_code == 429:
            assert time.monotonic() < deadline
        assert answer.status_code == 200


@with_settings(tenant_tokens_per_minute=100)
def test_tokens_are_reserved_at_their_most_and_counted_as_they_were(site: Any, acme: str) -> None:
    def send(prompt: str, max_tokens: int) -> Any:
        return complete(site, acme, prompt=prompt, max_tokens=max_tokens)

    answer = send("abc", 90)  # the engine stops after as many as the prompt has
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "100"
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert left <= 7
    refused = send("abc", 98)
    assert refused.status_code == 429
    num_used = sum(answer.json()["usage"][key] for key in ("prompt_tokens", "completion_tokens"))
    answer = send("abc", 100 - num_used - 3)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
    too_large = send("abc", 120)
    assert too_large.status_code == 429
    assert too_large.headers["x-should-retry"] == "false"
    assert "larger than the 100 tokens per minute" in too_large.json()["error"]["message"]


_DURATION = re.compile(r"0s|\d+ms|(\d+m)?\d+(\.\d+)?s")


ANSWERS: list[tuple[str, dict[str, Any] | bytes, int]] = [
    ("/v1/completions", BODY, 200),
    ("/v1/completions", BODY | {"stream": True}, 200),
    ("/v1/chat/completions", CHAT, 200),
    ("/generate", {"inputs": "hey", "parameters": {"max_new_tokens": 3}}, 200),
    ("/v1/completions", BODY | {"model": "nobody"}, 404),
    ("/v1/completions", BODY | {"max_tokens": -1}, 400),
    ("/v1/completions", BODY | {"prompt": "x" * 500}, 400),
    ("/v1/completions", b"{", 400),
    ("/generate", b"{", 422),
]


def test_every_answer_says_what_is_left(site: Any, acme: str) -> None:
    num_done = 0
    for path, body, status in ANSWERS:
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        headers = {"content-type": "application/json"}
        answer = site.call(acme, "POST", path, headers=headers, **content)
        assert answer.status_code == status
        num_done += status == 200
        for what in ("requests", "tokens"):
            limit = int(answer.headers[f"x-ratelimit-limit-{what}"])
            remaining = int(answer.headers[f"x-ratelimit-remaining-{what}"])
            assert 0 < remaining < limit
            assert _DURATION.fullmatch(answer.headers[f"x-ratelimit-reset-{what}"])
            if what == "requests":
                assert limit - remaining == num_done


def test_a_base_is_limited_over_all_tenants_and_its_load_is_nobodys_business(site: Any) -> None:
    first, second = create_limited_tenant(site), create_limited_tenant(site)
    operator, limit = site.operator_key, {"requests_per_minute": 1}
    answer = set_limit(site, operator, "/admin/v1/limits", "base", "tiny", **limit)
    assert answer.status_code == 200
    assert complete(site, first.key).status_code == 200
    refused = complete(site, second.key)
    assert refused.status_code == 429
    assert "base 'tiny'" in refused.json()["error"]["message"]
    assert int(refused.headers["x-ratelimit-remaining-requests"]) > 1


def test_who_is_not_known_is_told_nothing(site: Any) -> None:
    answer = site.call("nonsense", "POST", "/v1/completions", json=BODY)
    assert answer.status_code == 401
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("fails_open", [False, True])
def test_without_redis_requests_are_refused_unless_the_operator_lets_them_run(
    settings: ServerSettings,
    tokenizer: BaseTokenizer,
    create_redis: Callable[[], RedisServer],
    fails_open: bool,
) -> None:
    server = create_redis()
    server.start()
    own = dataclasses.replace(settings, redis_url=server.url, fail_open_limits=fails_open)
    app = create_app(own, EchoEngine(), tokenizer)
    with background_server(app, own) as url, httpx2.Client(base_url=url, timeout=20.0) as http:
        http.headers["authorization"] = f"Bearer {create_tenant(http, own)}"
        assert http.post("/v1/completions", json=BODY).status_code == 200
        server.stop()
        answer = http.post("/v1/completions", json=BODY)
        if fails_open:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
            assert answer.json()["error"]["code"] == "limits_unavailable"
        server.start()
        answer = http.post("/v1/completions", json=BODY)
        assert answer.status_code == 200
        assert "x-ratelimit-remaining-requests" in answer.headers
        http.headers["authorization"] = operator_header(own)
        metrics = http.get("/metrics").text
        assert re.search(r"^weft_limiter_failures_total [1-9]", metrics, re.M)
    server.close()


def operator_header(settings: ServerSettings) -> str:
    return f"Bearer {(settings.data_dir / 'operator_key').read_text().strip()}"


def create_tenant(http: httpx2.Client, settings: ServerSettings, name: str = "acme") -> str:
    """A key of a new tenant."""
    headers = {"authorization": operator_header(settings)}
    http.post("/admin/v1/tenants", json={"name": name}, headers=headers).raise_for_status()
    answer = http.post(f"/admin/v1/tenants/{name}/keys", json={}, headers=headers)
    return str(answer.raise_for_status().json()["value"])
