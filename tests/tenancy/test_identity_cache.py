"""What is remembered of keys is bounded in time and number, and never older than a change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from weft.tenancy.identity_cache import KNOWN_S, TTL_S, IdentityCache, Outcome
from weft.tenancy.principal import Operator

OLD, NEW = Operator("old"), Operator("new")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> IdentityCache:
    return IdentityCache(clock, max_entries=3)


def reading(outcome: Outcome) -> Callable[[], Awaitable[Outcome]]:
    async def read() -> Outcome:
        return outcome

    return read


async def test_an_entry_is_fresh_for_two_seconds_from_the_start_of_its_read(
    cache: IdentityCache, clock: Clock
) -> None:
    async def slow() -> Outcome:
        clock.now_s += 1.5
        return OLD

    await cache.read(b"k", slow)
    assert cache.find(b"k") is OLD
    clock.now_s += TTL_S - 1.5
    assert cache.find(b"k") is None
    assert TTL_S <= 2.0


@pytest.mark.parametrize("outcome", [OLD, "invalid", "suspended"])
async def test_refusals_are_remembered_like_identities(
    cache: IdentityCache, clock: Clock, outcome: Outcome
) -> None:
    await cache.read(b"k", reading(outcome))
    assert cache.find(b"k") == outcome
    assert cache.was_good(b"k") == (outcome is OLD)
    clock.now_s += TTL_S
    assert cache.find(b"k") is None
    assert cache.was_good(b"k") == (outcome is OLD)
    clock.now_s += KNOWN_S
    assert not cache.was_good(b"k")


async def test_a_change_holds_at_once(cache: IdentityCache) -> None:
    await cache.read(b"k", reading(OLD))
    cache.forget_all()
    assert cache.find(b"k") is None
    assert cache.was_good(b"k"), "it may be looked up, whatever its address has sent"
    await cache.read(b"k", reading("invalid"))
    assert not cache.was_good(b"k")


async def test_a_slow_read_brings_nothing_old_back(cache: IdentityCache) -> None:
    may_end = asyncio.Event()

    async def slow() -> Outcome:
        await may_end.wait()
        return OLD

    before = asyncio.create_task(cache.read(b"k", slow))
    await asyncio.sleep(0)
    cache.forget_all()
    # whoever asks after the change neither waits for the old read nor gets its answer
    assert await cache.read(b"k", reading(NEW)) is NEW
    may_end.set()
    assert await before is OLD
    assert cache.find(b"k") is NEW


async def test_requests_at_once_share_one_read(cache: IdentityCache) -> None:
    num_reads = 0

    async def read() -> Outcome:
        nonlocal num_reads
        num_reads += 1
        await asyncio.sleep(0)
        return NEW

    assert await asyncio.gather(*(cache.read(b"k", read) for _ in range(50))) == [NEW] * 50
    assert num_reads == 1


async def test_one_that_is_cancelled_leaves_the_others_their_answer(cache: IdentityCache) -> None:
    may_end = asyncio.Event()

    async def slow() -> Outcome:
        await may_end.wait()
        return NEW

    first, second = (asyncio.create_task(cache.read(b"k", slow)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    may_end.set()
    assert await second is NEW


async def test_a_read_that_fails_is_not_remembered(cache: IdentityCache) -> None:
    async def fail() -> Outcome:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await cache.read(b"k", fail)
    assert await cache.read(b"k", reading(NEW)) is NEW


async def test_a_flood_of_bad_keys_pushes_no_good_one_out(cache: IdentityCache) -> None:
    await cache.read(b"k", reading(OLD))
    for i in range(100):
        await cache.read(b"bad%d" % i, reading("invalid"))
    assert cache.find(b"k") is OLD
    assert len(cache) == 1 + 3
    for i in range(100):
        await cache.read(b"good%d" % i, reading(NEW))
    assert len(cache) == 3 + 3
