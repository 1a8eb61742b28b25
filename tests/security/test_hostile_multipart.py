"""Attack class 34: multipart bodies written to hurt their parser."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator

import httpx2
import pytest
from tests.gateway.site import Site

Send = Callable[..., httpx2.Response]
GOOD = {"content-type": "multipart/form-data; boundary=b"}


def part(name: str, data: bytes = b"x", extra: bytes = b"") -> bytes:
    disposition = f'content-disposition: form-data; name="{name}"'.encode()
    return b"--b\r\n" + disposition + b"\r\n" + extra + b"\r\n" + data + b"\r\n"


@pytest.fixture
def send(site: Site, mallory: str) -> Iterator[Send]:
    """(body, headers) -> the answer; nothing may be left of it."""

    def post(body: bytes, headers: dict[str, str] = GOOD) -> httpx2.Response:
        path = "/v1/adapters/bot/versions"
        return site.call(mallory, "POST", path, content=body, headers=headers)

    yield post
    assert list(site.settings.uploads_dir.iterdir()) == []
    assert site.call(mallory, "GET", "/v1/adapters/bot/versions").json()["data"] == []


CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.mark.parametrize(
    "body",
    [
        b"".join(part(f"part{i}") for i in range(10_000)) + b"--b--\r\n",
        b"".join(part(CONFIG) for _ in range(2)) + part(TENSORS) + b"--b--\r\n",
        part(CONFIG, extra=b"x-long: " + b"a" * 500_000 + b"\r\n") + b"--b--\r\n",
        part(CONFIG, extra=b"x: y\r\n" * 50_000) + b"--b--\r\n",
        part("a" * 500_000) + b"--b--\r\n",
        part("../../" + CONFIG) + b"--b--\r\n",
        part(CONFIG) + part(TENSORS),
        part(CONFIG) + b"--b--\r\n",
        b"--b\r\n" * 100_000,
        b"\r\n" * 300_000,
        b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b"no boundary at all",
        b"--b",
        b"",
        b"\0" * 1000,
    ],
    ids=range(15),
)
def test_34_bodies_that_are_not_two_files_are_refused_at_once(send: Send, body: bytes) -> None:
    tracemalloc.start()
    start_s = time.process_time()
    try:
        answer = send(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["message"]
    assert time.process_time() - start_s < 2
    assert peak < len(body) + 16 * 2**20


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 10_000,
        "multipart/form-data; boundary=b; boundary=c",
        "multipart/form-data; boundary*=utf-8''%00",
        "multipart/mixed; boundary=b",
        "application/octet-stream",
        "text/plain; multipart/form-data; boundary=b",
        "",
    ],
)
def test_34_a_type_without_a_plain_boundary_is_refused(send: Send, content_type: str) -> None:
    body = part(CONFIG) + part(TENSORS) + b"--c--\r\n"
    assert send(body, {"content-type": content_type}).status_code in (400, 415)


@pytest.mark.parametrize("length", ["1", "-1", "99999999999", "x"])
def test_34_a_length_that_is_a_lie_does_not_help(site: Site, mallory: str, length: str) -> None:
    """Below HTTP's own rules there is no client for it: written by hand."""
    import socket
    from urllib.parse import urlsplit

    url = urlsplit(site.url)
    body = part(CONFIG) + part(TENSORS) + b"--b--\r\n"
    head = (
        f"POST /v1/adapters/bot/versions HTTP/1.1\r\nhost: {url.netloc}\r\n"
        f"authorization: Bearer {mallory}\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        f"content-length: {length}\r\nconnection: close\r\n\r\n"
    )
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=10) as sock:
        sock.sendall(head.encode() + body)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.makefile("rb").read()
    assert not answer or answer.split(b" ")[1] in (b"400", b"413"), answer[:200]
    deadline = time.monotonic() + 5
    while (left := list(site.settings.uploads_dir.glob("*"))) and time.monotonic() < deadline:
        time.sleep(0.005)  # a connection that ended may do so before what came over it is removed
    assert left == []
