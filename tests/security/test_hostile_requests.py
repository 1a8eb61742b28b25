"""Requests that are malformed, endless, huge or slow, sent byte by byte (attacks 15, 17, 18)."""

from __future__ import annotations

import gzip
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.gateway.site import Site

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def exchange(site: Site, data: bytes, *, wait_s: float = 10.0) -> bytes:
    """Send the bytes as they are; all that comes back until the connection is closed or silent."""
    address = urlsplit(site.url)
    with socket.create_connection((address.hostname, address.port), timeout=wait_s) as sock:
        sock.sendall(data)
        received = b""
        while True:
            try:
                chunk = sock.recv(65536)
            except TimeoutError:
                return received
            if not chunk:
                return received
            received += chunk


def request(site: Site, target: str, *headers: str, host: str = "127.0.0.1") -> tuple[int, Any]:
    """A GET with this very target; (status, body)."""
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    answer = exchange(site, "\r\n".join(lines).encode("latin-1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "host", ["x/?", "x#", "evil.example", "127.0.0.1/admin", "a@127.0.0.1", "", "127.0.0.1, x"]
)
def test_15_another_host_is_refused_whatever_the_path(site: Site, host: str) -> None:
    for path in ("/livez", "/v1/models", "/admin/v1/tenants"):
        status, body = request(site, path, host=host)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")


def test_15_two_hosts_or_none_are_refused(site: Site) -> None:
    assert request(site, "/livez", "Host: localhost")[0] == 400
    answer = exchange(site, b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "target",
    [
        "//admin/v1/tenants",
        "/v1/../admin/v1/tenants",
        "/v1/%2e%2e/admin/v1/tenants",
        "/admin;x/v1/tenants",
        "/admin/v1/tenants/",
        "/admin/v1/tenants.",
        "/Admin/v1/tenants",
        "/ADMIN/V1/TENANTS",
        "/admin//v1/tenants",
        "/admin/v1/tenants%00",
        "/admin/v1/tenants%0d%0aX: y",
        "/%61dmin/v1/tenants",
        "http://127.0.0.1/admin/v1/tenants",
        "http://evil.example/admin/v1/tenants",
        "/livez/../admin/v1/tenants",
        "/admin/v1/tenants?x=/livez",
        "/admin/v1/tenants#/livez",
        "*",
    ],
)
def test_15_no_spelling_of_a_path_opens_a_route(site: Site, mallory: str, target: str) -> None:
    target = target.replace(" ", "%20")
    for key, expected in (("", (401, 404, 400)), (mallory, (403, 404, 400))):
        header = f"Authorization: Bearer {key}" if key else "X-None: 1"
        assert request(site, target, header)[0] in expected
    # a plain path of the operator's is open to the operator
    assert (
        request(site, "/admin/v1/tenants", f"Authorization: Bearer {site.operator_key}")[0] == 200
    )


@pytest.mark.parametrize(
    "header", ["X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL"]
)
def test_15_headers_change_neither_method_nor_path(site: Site, mallory: str, header: str) -> None:
    value = "/admin/v1/tenants" if header == "X-Original-URL" else "DELETE"
    answer = site.call(mallory, "GET", "/v1/adapters/bot", headers={header: value})
    assert answer.status_code == 200
    assert site.call(mallory, "GET", "/v1/adapters/bot").status_code == 200


def test_17_a_body_that_is_too_large_is_refused_before_it_comes(site: Site, mallory: str) -> None:
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {mallory}\r\n"
        "Content-Type: application/json\r\nContent-Length: 99999999999999999999\r\n\r\n"
    )
    answer = exchange(site, head.encode())
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"payload_too_large" in answer


def test_17_chunks_that_add_up_to_too_much_are_refused(site: Site, mallory: str) -> None:
    def chunks() -> Any:
        yield b'{"model": "tiny", "x": "'
        for _ in range(200):
            yield b"x" * 1000

    headers = {"content-type": "application/json"}
    answer = site.call(mallory, "POST", CHAT, content=chunks(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 50_000,
        b'{"messages":' * 8_000,
        b'{"model":"tiny","messages":' + b"[" * 40_000 + b"]" * 40_000 + b"}",
        b'{"a":' * 65 + b"1" + b"}" * 65,
    ],
)
def test_17_a_deep_body_is_refused_before_it_is_parsed(
    site: Site, mallory: str, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    answer = site.call(mallory, "POST", CHAT, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert "nested" in answer.json()["error"]["message"]


def test_17_a_compressed_body_is_refused_unread(site: Site, mallory: str) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    for encoding in ("gzip", "GZIP", "deflate", "br", "gzip, identity"):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        answer = site.call(mallory, "POST", CHAT, content=bomb, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            415,
            "unsupported_media_type",
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 2**31),
        ("max_tokens", 10**400),
        ("max_tokens", -1),
        ("n", 16384),
        ("n", 0),
        ("stop", ["x"] * 10_000),
        ("logit_bias", {str(token): 1 for token in range(5_000)}),
        ("temperature", 1e308),
        ("top_p", 1e-400),
        ("top_p", -1),
        ("seed", 2**70),
        ("messages", [{"role": "user", "content": "x"}] * 2_500),
        ("messages", [{"role": "user", "content": "x" * 90_000}]),
    ],
)
def test_17_values_beyond_reason_are_refused(
    site: Site, mallory: str, name: str, value: object
) -> None:
    num_before = len(site.engine.requests)
    body = {"model": "tiny", "messages": MESSAGES, name: value}
    answer = site.call(mallory, "POST", CHAT, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(site.engine.requests) == num_before


def test_18_a_head_that_never_ends_is_cut_off(site: Site) -> None:
    address = urlsplit(site.url)
    started_s = time.monotonic()
    with socket.create_connection((address.hostname, address.port), timeout=10.0) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        received = b""
        while chunk := _try_trickle(sock, b"X-A: b\r\n"):
            received += chunk
    assert received.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in received
    assert time.monotonic() - started_s < 5.0
    assert site.http.get("/livez").status_code == 200


def _try_trickle(sock: socket.socket, line: bytes) -> bytes:
    """Send a line each 50 ms until something comes back; that, or nothing at the end."""
    sock.settimeout(0.05)
    for _ in range(100):
        try:
            return sock.recv(65536)
        except TimeoutError:
            try:
                sock.sendall(line)
            except OSError:
                continue
        except OSError:
            return b""
    return b""


def test_18_a_silent_connection_is_cut_off(site: Site) -> None:
    assert exchange(site, b"").startswith(b"HTTP/1.1 408")


def test_18_a_second_head_is_timed_like_the_first(site: Site) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    answer = exchange(site, whole + b"GET /livez HTTP/1.1\r\nHost:")
    first, second = answer.split(b"HTTP/1.1 ")[1:]
    assert (first[:3], second[:3]) == (b"200", b"408")


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=x"])
def test_18_a_body_that_never_ends_is_cut_off(site: Site, mallory: str, content_type: str) -> None:
    path = CHAT if content_type == "application/json" else "/v1/adapters/bot/versions"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {mallory}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: 1000\r\n\r\n"
    )
    answer = exchange(site, head.encode() + b"-")
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"connection: close" in answer.lower()


def test_18_a_head_that_is_too_large_is_refused(site: Site) -> None:
    answer = exchange(site, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 100_000)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"invalid_http" in answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n X: folded\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost : a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_18_what_is_no_request_is_refused_in_the_same_words(site: Site, data: bytes) -> None:
    answer = exchange(site, data)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b'"error"' in answer
