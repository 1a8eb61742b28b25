"""Who stays on the device: by the policy, by pins and by who is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from weft_adapters.pool import PagePool
from weft_adapters.sites import BaseSpec
from weft_adapters.states import AdapterState
from weft_adapters.store import FolderStore
from weft_adapters.tiers import AdapterTiers

PAGE_BYTES = 8 * (32 + 64) * 4  # of q_proj
Put = Callable[..., str]
Create = Callable[..., AdapterTiers]


@pytest.fixture
def create(
    dense: BaseSpec, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Create]:
    """(num_pages=2, policy="cost") -> tiers that end with the test."""
    monkeypatch.setattr("weft_adapters.loader._GRACE_S", 0.0)
    monkeypatch.setattr("weft_adapters.loader._LOOK_AHEAD_S", 0.02)
    made: list[AdapterTiers] = []

    def build(num_pages: int = 2, policy: str = "cost") -> AdapterTiers:
        pool = PagePool(dense, num_pages * PAGE_BYTES, torch.float32, "cpu", keep_checksums=True)
        made.append(AdapterTiers(store, dense, pool, 2**20, policy=policy))
        return made[-1]

    yield build
    for tiers in made:
        tiers.integrity()
        tiers.close()


def wait_for(tiers: AdapterTiers, digest: str, state: AdapterState) -> None:
    deadline_s = time.monotonic() + 10
    while tiers.state(digest) is not state:
        assert time.monotonic() < deadline_s, f"{tiers.state(digest)}, {tiers.failure(digest)}"
        time.sleep(0.002)


def on_device(tiers: AdapterTiers, *digests: str, num_requests: int = 0) -> None:
    for digest in digests:
        tiers.request(digest)
        wait_for(tiers, digest, AdapterState.DEVICE)
        for _ in range(num_requests):
            tiers.request(digest, is_new=True)


@pytest.mark.parametrize(("policy", "evicted"), [("cost", 1), ("lfu", 1), ("lru", 0)])
def test_the_policy_chooses_who_makes_room(
    create: Create, put_adapter: Put, policy: str, evicted: int
) -> None:
    tiers = create(policy=policy)
    popular, once, third = digests = [put_adapter(seed) for seed in range(3)]
    on_device(tiers, popular, num_requests=5)
    on_device(tiers, once, num_requests=1)
    on_device(tiers, third)
    assert tiers.state(digests[evicted]) is AdapterState.HOST


def test_what_is_pinned_makes_no_room(create: Create, put_adapter: Put) -> None:
    tiers = create(policy="lru")
    pinned, other, third = (put_adapter(seed) for seed in range(3))
    tiers.pin(pinned)
    on_device(tiers, pinned, other, third)
    assert tiers.state(pinned) is AdapterState.DEVICE
    tiers.pin(pinned, False)
    on_device(tiers, other)
    assert tiers.state(pinned) is AdapterState.HOST


def test_what_is_waited_for_goes_last(create: Create, put_adapter: Put) -> None:
    tiers = create(num_pages=3, policy="lru")
    next_one, later, idle, new, newer = (put_adapter(seed) for seed in range(5))
    on_device(tiers, next_one, later, idle)
    tiers.expect([next_one, later])
    on_device(tiers, new)
    assert tiers.state(idle) is AdapterState.HOST
    assert tiers.acquire(new) is not None
    on_device(tiers, newer)
    assert tiers.state(later) is AdapterState.HOST
    assert tiers.state(next_one) is AdapterState.DEVICE
    tiers.release(new)


def test_the_most_popular_are_brought_before_they_are_asked_for(
    create: Create, put_adapter: Put
) -> None:
    tiers = create()
    popular, large = put_adapter(1), put_adapter(2, rank=16)
    on_device(tiers, popular, num_requests=5)
    on_device(tiers, large, num_requests=3)
    assert tiers.state(popular) is AdapterState.HOST
    time.sleep(0.1)
    assert tiers.state(popular) is AdapterState.HOST, "it is not asked for so much more"
    tiers.unload(large)
    wait_for(tiers, popular, AdapterState.DEVICE)


def test_those_that_must_make_room_are_told_and_others_are_not(
    create: Create, put_adapter: Put
) -> None:
    tiers = create()
    first, second, third = (put_adapter(seed) for seed in range(3))
    on_device(tiers, first, second)
    for digest in (first, second):
        assert tiers.acquire(digest) is not None
    assert tiers.leaving == frozenset()
    deadline_s = time.monotonic() + 10
    while not tiers.leaving:
        assert time.monotonic() < deadline_s
        tiers.request(third)
        time.sleep(0.01)
    assert tiers.leaving == {first}
    tiers.release(first)
    wait_for(tiers, third, AdapterState.DEVICE)
    assert tiers.leaving == frozenset()
    tiers.release(second)
