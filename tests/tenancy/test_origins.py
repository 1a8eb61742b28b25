"""What a browser sends is ours only where a page of ours sent it."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.settings import ServerSettings
from weft.settings.sign_in import parse_public_url
from weft.tenancy.csrf import create_csrf_token, is_csrf_token
from weft.tenancy.origins import CrossSiteError, Origins

PUBLIC = Origins("https://weft.example.com")
LOCAL = Origins(None)
KEY = b"k" * 32


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://weft.example.com"},
        {"origin": "https://weft.example.com", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "same-origin"},
    ],
)
def test_our_own_pages_may_send(headers: dict[str, str]) -> None:
    PUBLIC.check(headers, 8000)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "weft.example.com"},
        {"origin": "null"},
        {"origin": "http://weft.example.com"},
        {"origin": "https://weft.example.com:8443"},
        {"origin": "https://weft.example.com.evil.example"},
        {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
        {"origin": "https://weft.example.com", "sec-fetch-site": "same-site"},
        {"origin": "https://weft.example.com", "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://localhost:8000"},
    ],
)
def test_others_may_not(headers: dict[str, str]) -> None:
    with pytest.raises(CrossSiteError):
        PUBLIC.check(headers, 8000)


def test_without_a_public_url_it_is_this_machine_at_the_servers_port() -> None:
    for name in ("localhost", "127.0.0.1", "[::1]"):
        LOCAL.check({"origin": f"http://{name}:8000"}, 8000)
    for origin in ("http://localhost:8001", "https://localhost:8000", "http://evil.example:8000"):
        with pytest.raises(CrossSiteError):
            LOCAL.check({"origin": origin}, 8000)
    assert LOCAL.base(8000) == "http://127.0.0.1:8000"
    assert not LOCAL.is_secure
    assert PUBLIC.is_secure


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Weft.example.com/", "https://weft.example.com"),
        ("https://weft.example.com:443", "https://weft.example.com"),
        ("https://weft.example.com:8443", "https://weft.example.com:8443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_a_public_url_is_read_as_browsers_write_origins(text: str, origin: str) -> None:
    assert parse_public_url(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "weft.example.com",
        "http://weft.example.com",
        "http://10.0.0.1",
        "ftp://weft.example.com",
        "https://",
        "https://weft.example.com/console",
        "https://user:pw@weft.example.com",
        "https://weft.example.com?x",
        "https://weft.example.com:99999",
    ],
)
def test_a_public_url_that_would_send_cookies_in_the_clear_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="public_url"):
        ServerSettings(base_dir=Path("."), public_url=text)


def test_a_token_is_right_for_its_session_alone() -> None:
    token = create_csrf_token(KEY, "a" * 64)
    assert is_csrf_token(KEY, "a" * 64, token, token)
    assert not is_csrf_token(KEY, "b" * 64, token, token)
    assert not is_csrf_token(b"l" * 32, "a" * 64, token, token)
    assert create_csrf_token(KEY, "a" * 64) != token


def test_header_and_cookie_must_both_be_there_and_agree() -> None:
    token, other = (create_csrf_token(KEY, "a" * 64) for _ in range(2))
    for header, cookie in (
        (token, None), (None, token), (token, other), ("", ""), ("é", "é"), ("x", "x"),
        (token + "=", token + "="), ("A" * 64, "A" * 64), ("A" * 500, "A" * 500),
    ):  # fmt: skip
        assert not is_csrf_token(KEY, "a" * 64, header, cookie)
