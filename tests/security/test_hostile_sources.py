"""Attack class 37: imports that would have the server fetch what is inside, or anybody's.

How addresses are judged and connections made is tested with the fetcher, in `tests/registry`.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
from tests.gateway.site import Site

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INSIDE = (
    "http://169.254.169.254/latest/meta-data", "https://169.254.169.254/", "http://localhost./",
    "https://[::ffff:127.0.0.1]/", "https://0/", "https://2130706433/", "https://0177.0.0.1/",
    "https://127.1/", "https://0x7f.1/", "https://[::1]/", "https://[fd00:ec2::254]/",
    "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "ftp://127.0.0.1/", "data:,x",
    "//169.254.169.254/", "https://huggingface.co@169.254.169.254/", "https://huggingface.co.evil/",
    "https://huggingface.co\\@evil/", "jar:https://x!/", "s3://other-bucket/folder", "/etc/passwd",
    "s3://bucket/../other/folder", "s3://bucket/./x", "s3://bucket//x", "s3://../etc", "s3://",
    "s3://bucket/a\0b", "s3://169.254.169.254/latest", "S3://bucket/x", "s3://bucket:80/x",
)  # fmt: skip
REPOS = (
    *INSIDE, "..", "../..", "org/..", "org/../../etc", "org/x/../../y", "org", "/org/x", "org/x/",
    "org/x?revision=main", "org/x#y", "org/x%2f..", "org\\x", "org/x\r\nhost: evil", "org/--x",
    "org/x@main", " org/x", "org/\u202ex", "a" * 97 + "/x",
)  # fmt: skip
REVISIONS = (
    "main", "v1.0", "refs/pr/1", "HEAD", "0" * 39, "0" * 41, "0" * 64, COMMIT.upper(), "../" * 12,
    COMMIT[:-1] + "g", COMMIT + "\n", "", "0" * 39 + "\uff10",
)  # fmt: skip

_connections: list[list[str]] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.connect"):
        for heard in _connections:
            heard.append(f"{event} {arguments}")


@pytest.fixture(scope="module", autouse=True)
def _audit() -> None:
    sys.addaudithook(_listen)  # there is no way to take it away again


def sources() -> dict[str, dict[str, object]]:
    hub = {"type": "huggingface", "repo": "org/bot", "revision": COMMIT}
    return {
        **{f"repo {repo!r}": {**hub, "repo": repo} for repo in REPOS},
        **{f"revision {revision!r}": {**hub, "revision": revision} for revision in REVISIONS},
        **{f"s3 {uri!r}": {"type": "s3", "uri": uri} for uri in INSIDE},
        **{f"url {url!r}": {"type": "url", "url": url} for url in INSIDE},
        "host": {**hub, "host": "169.254.169.254"},
        "endpoint": {**hub, "endpoint": "http://169.254.169.254"},
        "type": {**hub, "type": "file"},
        "token": {**hub, "token": "hf_secret"},
        "another's upload": {"type": "upload", "upload_ids": ["upload_x"]},
    }


def test_37_a_source_that_leads_elsewhere_is_refused_before_anything_is_asked(
    site: Site, mallory: str
) -> None:
    site.http.get("/livez")  # so that the client's own connection is open already
    heard: list[str] = []
    _connections.append(heard)
    try:
        for what, source in sources().items():
            body = {"source": source}
            answer = site.call(mallory, "POST", "/v1/adapters/bot/versions", json=body)
            assert answer.status_code in (400, 404), (what, answer.text)
            error = answer.json()["error"]
            assert error["code"] in (
                "source_not_allowed", "invalid_value", "unknown_parameter", "source_not_found",
                "invalid_request",
            ), (what, error)  # fmt: skip
    finally:
        _connections.remove(heard)
    assert heard == [], "the server asked somebody"
    assert site.call(mallory, "GET", "/v1/adapters/bot/versions").json()["data"] == []


def test_37_the_audit_hears_a_connection(site: Site) -> None:
    import httpx2

    heard: list[str] = []
    _connections.append(heard)
    try:
        httpx2.get(f"{site.url}/livez")
    finally:
        _connections.remove(heard)
    assert heard
