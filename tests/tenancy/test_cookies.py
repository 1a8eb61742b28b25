"""Cookies go to our own pages only, over TLS wherever people come by it."""

from __future__ import annotations

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response

from weft.tenancy.cookies import CSRF, SESSION, SIGN_IN, Cookies


def attributes(cookies: Cookies, cookie: str) -> list[str]:
    response = Response()
    cookies.set(response, cookie, "value", 60)
    return response.headers["set-cookie"].lower().split("; ")


@pytest.mark.parametrize("cookie", [SESSION, CSRF, SIGN_IN])
def test_over_https_a_cookie_is_this_hosts_alone_and_never_sent_in_the_clear(cookie: str) -> None:
    found = attributes(Cookies(is_secure=True), cookie)
    assert found[0] == f"__host-{cookie}=value"
    assert {"secure", "path=/", "samesite=lax"} <= set(found)
    assert not any(each.startswith("domain") for each in found)
    assert ("httponly" in found) == (cookie != CSRF)


def test_a_browser_does_not_send_it_over_http() -> None:
    response = Response()
    Cookies(is_secure=True).set(response, SESSION, "value", 60)
    headers = [("set-cookie", response.headers["set-cookie"])]

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=headers, text=request.headers.get("cookie", ""))

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as browser:
        browser.get("https://weft.example.com/")
        assert browser.get("https://weft.example.com/").text == "__Host-weft_session=value"
        assert browser.get("http://weft.example.com/").text == ""


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("weft_session=a", "a"),
        ("x=1; weft_session=a ; y=2", "a"),
        ("weft_session=a==", "a=="),
        ("weft_session=a; weft_session=b", None),
        ("weft_session=", None),
        ("xweft_session=a", None),
        ("__Host-weft_session=a", None),
        ("", None),
    ],
)
def test_a_cookie_is_read_if_there_is_one_of_its_name(header: str, value: str | None) -> None:
    raw = [(b"cookie", header.encode())]
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": raw})
    assert Cookies(is_secure=False).read(request, SESSION) == value
