"""A flood of bad keys is throttled by address, without the database and without the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import event

from weft.db.scope import TenantOwner
from weft.errors import AuthenticationError, RateLimitError
from weft.tenancy.authenticator import MAX_LOOKUPS_OF_STRANGERS
from weft.tenancy.bad_keys import BURST, PER_S, BadKeys, network_of
from weft.tenancy.keys import create_key


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_an_address_has_a_burst_and_then_a_rate() -> None:
    clock = Clock()
    bad_keys = BadKeys(clock, burst=3, per_s=0.5)
    for _ in range(3):
        bad_keys.check("1.2.3.4")
        bad_keys.note("1.2.3.4")
    with pytest.raises(RateLimitError) as caught:
        bad_keys.check("1.2.3.4")
    assert caught.value.status_code == 429
    assert caught.value.headers["retry-after"] == "2"
    bad_keys.check("1.2.3.5")
    clock.now_s += 2
    bad_keys.check("1.2.3.4")
    bad_keys.note("1.2.3.4")
    with pytest.raises(RateLimitError):
        bad_keys.check("1.2.3.4")
    clock.now_s += 3600
    for _ in range(3):  # no more than the burst is saved up
        bad_keys.check("1.2.3.4")
        bad_keys.note("1.2.3.4")
    with pytest.raises(RateLimitError):
        bad_keys.check("1.2.3.4")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        (None, ""),
    ],
)
def test_who_has_a_whole_network_has_one_budget(address: str | None, network: str) -> None:
    assert network_of(address) == network


def test_the_table_of_addresses_is_bounded() -> None:
    bad_keys = BadKeys(Clock(), max_addresses=10)
    for i in range(1000):
        bad_keys.note(f"10.0.{i // 256}.{i % 256}")
    assert len(bad_keys) == 10


def count_queries(office: Any) -> list[str]:
    """The queries that are made from now on."""
    queries: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            queries.append(statement)

    event.listen(office.database._engine.sync_engine, "before_cursor_execute", note)
    return queries


async def test_a_flood_costs_few_queries_and_no_right_key(office: Any, acme: TenantOwner) -> None:
    key = (await office.key(acme)).text
    await office.authenticator.authenticate(key, "1.2.3.4")
    queries = count_queries(office)

    async def attempt(text: str) -> type[Exception] | None:
        try:
            await office.authenticator.authenticate(text, "1.2.3.4")
        except (AuthenticationError, RateLimitError) as error:
            return type(error)
        return None

    bad = [str(create_key("live")) for _ in range(400)]
    outcomes = await asyncio.gather(*map(attempt, bad))
    assert set(outcomes) == {AuthenticationError, RateLimitError}
    assert outcomes.count(AuthenticationError) <= BURST + MAX_LOOKUPS_OF_STRANGERS
    assert len(queries) <= BURST + MAX_LOOKUPS_OF_STRANGERS
    assert len(queries) >= BURST
    assert await attempt("junk") is RateLimitError
    # the right key from the same address, remembered and looked up anew
    assert await attempt(key) is None
    office.authenticator.forget_all()
    assert await attempt(key) is None
    # a key not seen before has to wait, from this address only
    fresh = (await office.key(acme)).text
    assert await attempt(fresh) is RateLimitError
    assert await office.authenticator.authenticate(fresh, "1.2.3.5")
    office.clock_s += 2 / PER_S
    office.authenticator.forget_all()
    fresh = (await office.key(acme)).text
    assert await attempt(fresh) is None


async def test_the_same_bad_key_asks_the_database_once(office: Any, acme: TenantOwner) -> None:
    bad = str(create_key("admin"))
    queries = count_queries(office)
    for _ in range(20):
        with pytest.raises(AuthenticationError):
            await office.authenticator.authenticate(bad, "1.2.3.4")
    assert len(queries) == 1
