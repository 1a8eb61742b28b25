"""A server answers for its own names."""

from __future__ import annotations

import pytest

from weft.gateway.hosts import AllowedHosts


@pytest.mark.parametrize(
    "header",
    [
        "x/?",
        "x#",
        "",
        "a b",
        "user@host",
        "host:99999999",
        "host:",
        "[::1",
        "::1",
        "é",
        "a\n",
        "x,y",
    ],
)
def test_what_is_no_host_is_refused_by_any_server(header: str) -> None:
    assert not AllowedHosts(()).allow(header)


def test_any_host_will_do_where_none_is_named() -> None:
    for header in ("example.com", "example.com:80", "[2001:db8::1]:8000", "192.0.2.1", "a_b.local"):
        assert AllowedHosts.of((), "0.0.0.0").allow(header)


def test_the_loopback_answers_for_its_own_names_only() -> None:
    hosts = AllowedHosts.of((), "127.0.0.1")
    for header in ("127.0.0.1:8000", "LocalHost", "[::1]:1"):
        assert hosts.allow(header)
    for header in ("evil.example", "127.0.0.1.evil.example", "localhost.", "0.0.0.0"):
        assert not hosts.allow(header)


def test_named_hosts_and_all_below_a_name() -> None:
    hosts = AllowedHosts.of(("api.example.com", "*.Weft.example"), "127.0.0.1")
    for header in ("api.example.com:443", "eu.weft.example"):
        assert hosts.allow(header)
    for header in ("weft.example", "evilweft.example", "example.com", "127.0.0.1"):
        assert not hosts.allow(header)


def test_the_host_under_which_people_come_is_answered_for() -> None:
    for named, listens_on in (((), "127.0.0.1"), (("api.example.com",), "0.0.0.0")):
        hosts = AllowedHosts.of(named, listens_on, "weft.example.com")
        assert hosts.allow("weft.example.com:8443")
        assert not hosts.allow("evil.example")
    assert AllowedHosts.of((), "0.0.0.0", "weft.example.com").allow("10.1.2.3")
