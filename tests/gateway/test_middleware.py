"""What every answer carries, and what a request must be before a route sees it."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from weft.gateway.hosts import AllowedHosts
from weft.gateway.middleware import RequestContextMiddleware
from weft.gateway.request_guard import RequestGuard


def test_every_answer_has_its_headers(site: Any, acme: str) -> None:
    answers = [
        site.call(acme, "GET", "/v1/models"),
        site.call(acme, "GET", "/nowhere"),
        site.call(None, "GET", "/v1/models"),
        site.call(acme, "POST", "/v1/completions", json={"model": "tiny", "prompt": "a"}),
        site.call(acme, "GET", "/v1/models", headers={"host": "x/?"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 401, 200, 400]
    for answer in answers:
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] in ("no-store", "no-cache")
        assert "strict-transport-security" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_a_clients_own_id_is_said_back(site: Any, acme: str) -> None:
    for client_id in ("my-request 1", "x" * 512):
        headers = {"x-client-request-id": client_id}
        for path in ("/v1/models", "/nowhere"):
            answer = site.call(acme, "GET", path, headers=headers)
            assert answer.headers["x-client-request-id"] == client_id
    for wrong in (b"x" * 513, b"\xc3\xa9", b""):
        answer = site.call(acme, "GET", "/v1/models", headers={"x-client-request-id": wrong})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "X-Client-Request-Id"
        assert "x-client-request-id" not in answer.headers


async def answer(scope: dict[str, Any]) -> tuple[int, dict[str, str]]:
    """Of the two layers around an app that answers 200."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    guard = RequestGuard(app, AllowedHosts(()), 100, 1.0)
    await RequestContextMiddleware(guard)(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_only_what_came_encrypted_is_told_to_stay_so(scheme: str) -> None:
    scope = {"type": "http", "method": "GET", "path": "/", "scheme": scheme}
    status, headers = await answer({**scope, "headers": [(b"host", b"a.example")]})
    assert status == 200
    assert ("strict-transport-security" in headers) == (scheme == "https")
