"""Where a request came from: a trusted proxy's word counts, nobody else's."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx2
import pytest
from tests.gateway.echo import EchoEngine

from weft.app import create_app
from weft.gateway.proxies import TrustedProxies
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tenancy.bad_keys import BURST
from weft.tokenizer import BaseTokenizer

PROXIES = TrustedProxies(("10.0.0.0/8", "2001:db8:1::/48"))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["192.0.2.7, 10.0.0.2, 10.0.0.3"], "192.0.2.7"),
        ("10.0.0.1", ["192.0.2.7", "10.0.0.2"], "192.0.2.7"),
        ("2001:db8:1::5", ["2001:db8:9::1"], "2001:db8:9::1"),
        ("::ffff:10.0.0.1", ["::ffff:192.0.2.7"], "192.0.2.7"),
        # with ports, as some proxies write them
        ("10.0.0.1", ["192.0.2.7:4711"], "192.0.2.7"),
        ("10.0.0.1", ["[2001:db8:9::1]:4711"], "2001:db8:9::1"),
        # from inside
        ("10.0.0.1", ["10.0.0.9"], "10.0.0.9"),
        ("10.0.0.1", [], "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_says_whom_it_saw(peer: str, forwarded_for: list[str], client: str) -> None:
    assert PROXIES.find_client(peer, forwarded_for) == client


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        # who is no proxy says nothing about others
        ("192.0.2.7", ["198.51.100.1"], "192.0.2.7"),
        ("192.0.2.7", ["10.0.0.1"], "192.0.2.7"),
        ("unix", ["198.51.100.1"], "unix"),
        # what a client wrote itself is left of what the proxy saw
        ("10.0.0.1", ["198.51.100.1, 192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.5, 192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["198.51.100.1", "192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["198.51.100.1, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),
        # what is no address is no client, and hides nobody behind it
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1,"], "10.0.0.1"),
        ("10.0.0.1", ["1" * 10_000], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1" + ", 10.0.0.2" * 1000], "10.0.0.2"),
    ],
)
def test_what_a_client_writes_about_itself_does_not_count(
    peer: str, forwarded_for: list[str], client: str
) -> None:
    assert PROXIES.find_client(peer, forwarded_for) == client


@pytest.mark.parametrize(
    "network", ["10.0.0.1/8", "proxy.example", "", "10.0.0.0/33", "0.0.0.0/0", "::/0"]
)
def test_what_is_no_network_of_proxies_is_refused_by_name(
    settings: ServerSettings, network: str
) -> None:
    with pytest.raises(ValueError, match="trusted_proxies"):
        dataclasses.replace(settings, trusted_proxies=(network,))


@pytest.fixture
def proxied(settings: ServerSettings, tokenizer: BaseTokenizer) -> Iterator[tuple[str, str]]:
    """(url, operator's key) of a server whose proxies are on the loopback."""
    settings = dataclasses.replace(settings, trusted_proxies=("127.0.0.0/8",))
    app = create_app(settings, EchoEngine(), tokenizer)
    with background_server(app, settings) as url:
        yield url, (settings.data_dir / "operator_key").read_text().strip()


def test_the_throttle_of_bad_keys_counts_those_behind_a_proxy_one_by_one(
    proxied: tuple[str, str],
) -> None:
    url, operator_key = proxied

    def attempt(forwarded_for: str, key: str = "junk") -> int:
        headers = {"authorization": f"Bearer {key}", "x-forwarded-for": forwarded_for}
        return httpx2.get(f"{url}/v1/models", headers=headers).status_code

    with httpx2.Client(base_url=url) as http:
        headers = {"authorization": "Bearer junk"}
        codes = {
            http.get(
                "/v1/models", headers={**headers, "x-forwarded-for": f"198.51.100.{n}, 192.0.2.7"}
            ).status_code
            for n in range(BURST + 10)
        }
    assert codes == {401, 429}, "another address each time is no way around"
    assert attempt("192.0.2.8") == 401
    assert attempt("192.0.2.8", operator_key) == 403


@pytest.mark.parametrize("is_trusted", [True, False])
def test_the_audit_trail_has_the_address_that_counts(
    settings: ServerSettings, tokenizer: BaseTokenizer, is_trusted: bool
) -> None:
    """Also on the loopback, which servers in front are often on: none is trusted by itself."""
    networks = ("127.0.0.0/8",) if is_trusted else ()
    settings = dataclasses.replace(settings, trusted_proxies=networks)
    app = create_app(settings, EchoEngine(), tokenizer)
    with background_server(app, settings) as url:
        key = (settings.data_dir / "operator_key").read_text().strip()
        headers: dict[str, Any] = {
            "authorization": f"Bearer {key}",
            "x-forwarded-for": "198.51.100.1, 192.0.2.7",
            "x-forwarded-proto": "https",
        }
        answer = httpx2.post(f"{url}/admin/v1/tenants", json={"name": "acme"}, headers=headers)
        assert answer.status_code == 201
        assert "strict-transport-security" not in answer.headers
    with closing(sqlite3.connect(settings.database_file)) as database:
        (written,) = database.execute("SELECT ip FROM audit_entries WHERE type = 'tenant.created'")
    assert written == ("192.0.2.7" if is_trusted else "127.0.0.1",)
