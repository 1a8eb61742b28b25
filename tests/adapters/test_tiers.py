"""The tiers: what is in use stays, what is swapped is refused, and nobody waits for a load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weft_adapters.pool import PagePool
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.source import DigestMismatchError
from weft_adapters.states import AdapterState
from weft_adapters.store import AdapterNotStoredError, FolderStore, StoredAdapter
from weft_adapters.tiers import (
    AdapterTiers,
    AdapterTooLargeError,
    AdapterUnreadableError,
)

Q = Site(0, "q_proj")
PAGE_BYTES = 8 * (32 + 64) * 4
Put = Callable[..., str]
Create = Callable[..., AdapterTiers]


@pytest.fixture
def create(
    dense: BaseSpec, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Create]:
    """(num_pages of q_proj=2, host_bytes, on_change, store) -> tiers that end with the test."""
    monkeypatch.setattr("weft_adapters.loader._GRACE_S", 0.0)
    monkeypatch.setattr("weft_adapters.loader._RETRY_S", 0.02)
    monkeypatch.setattr("weft_adapters.waitlist._PATIENCE_S", 0.4)
    made: list[AdapterTiers] = []

    def build(num_pages: int = 2, host_bytes: int = 2**20, **keys: Any) -> AdapterTiers:
        pool = PagePool(dense, num_pages * PAGE_BYTES, torch.float32, "cpu", keep_checksums=True)
        tiers = AdapterTiers(keys.pop("store", store), dense, pool, host_bytes, **keys)
        made.append(tiers)
        return tiers

    yield build
    for tiers in made:
        tiers.integrity()
        tiers.close()


def wait_for(tiers: AdapterTiers, digest: str, state: AdapterState) -> None:
    deadline_s = time.monotonic() + 10
    while tiers.state(digest) is not state:
        assert time.monotonic() < deadline_s, f"{tiers.state(digest)}, {tiers.failure(digest)}"
        time.sleep(0.002)


def on_device(tiers: AdapterTiers, *digests: str) -> None:
    for digest in digests:
        tiers.request(digest)
        wait_for(tiers, digest, AdapterState.DEVICE)


class SlowStore:
    """A store whose `open` waits until it may go on."""

    def __init__(self, store: FolderStore) -> None:
        self._store = store
        self.may_open, self.opened = threading.Event(), threading.Event()
        self.num_opened = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def open(self, digest: str) -> StoredAdapter:
        self.opened.set()
        assert self.may_open.wait(10)
        self.num_opened += 1
        return self._store.open(digest)


def test_from_the_store_to_the_device(
    create: Create, put_adapter: Put, load_stored: Callable[[str], Any]
) -> None:
    changes: list[int] = []
    tiers = create(on_change=lambda: changes.append(1))
    digest = put_adapter(1)
    assert tiers.state(digest) is AdapterState.ABSENT
    assert tiers.acquire(digest) is None
    on_device(tiers, digest)
    pooled = tiers.acquire(digest)
    assert pooled is not None
    weights = load_stored(digest)[Q]
    a, b = tiers._pool.read(digest, Q)
    np.testing.assert_array_equal(a[:4].numpy(), weights.a)
    np.testing.assert_array_equal(b[:4].numpy(), weights.b)
    assert not a[4:].any()
    assert tiers.states() == {digest: AdapterState.DEVICE}
    tiers.release(digest)
    assert changes


def test_no_caller_waits_for_a_load(create: Create, store: FolderStore, put_adapter: Put) -> None:
    slow = SlowStore(store)
    tiers = create(store=slow)
    digest = put_adapter(1)
    tiers.request(digest)
    assert slow.opened.wait(10)
    start_s = time.perf_counter()
    for _ in range(100):
        tiers.request(digest)
        assert tiers.acquire(digest) is None
        assert tiers.state(digest) is AdapterState.FETCHING
    assert time.perf_counter() - start_s < 1
    slow.may_open.set()
    wait_for(tiers, digest, AdapterState.DEVICE)
    assert slow.num_opened == 1


def test_the_least_recently_used_makes_room(create: Create, put_adapter: Put) -> None:
    tiers = create(num_pages=2)
    first, second, third = (put_adapter(seed) for seed in range(3))
    on_device(tiers, first, second)
    assert tiers.acquire(first) is not None
    tiers.release(first)
    on_device(tiers, third)
    assert tiers.state(first) is AdapterState.DEVICE
    assert tiers.state(second) is AdapterState.HOST
    tiers.integrity()


def test_what_is_in_use_stays_and_the_next_one_waits(create: Create, put_adapter: Put) -> None:
    tiers = create(num_pages=2)
    first, second, third = (put_adapter(seed) for seed in range(3))
    on_device(tiers, first, second)
    held = [tiers.acquire(first), tiers.acquire(first), tiers.acquire(second)]
    before = tiers._pool.read(first, Q)[0].clone()
    tiers.request(third)
    time.sleep(0.15)
    assert tiers.acquire(third) is None
    assert tiers.acquire(first) is held[0]
    assert torch.equal(tiers._pool.read(first, Q)[0], before)
    tiers.release(second)
    wait_for(tiers, third, AdapterState.DEVICE)
    assert tiers.state(second) is AdapterState.HOST
    assert tiers.state(first) is AdapterState.DEVICE
    for _ in range(3):
        tiers.release(first)


def test_adapters_in_use_without_a_pause_starve_no_other(create: Create, put_adapter: Put) -> None:
    tiers = create(num_pages=2)
    digests = [put_adapter(seed) for seed in range(3)]
    on_device(tiers, *digests[:2])
    held: dict[str, int] = dict.fromkeys(digests, 0)
    num_turns = dict.fromkeys(digests, 0)
    deadline_s = time.monotonic() + 20
    while min(num_turns.values()) < 2:
        assert time.monotonic() < deadline_s, f"an adapter starves: {num_turns}"
        for digest in digests:  # each always has a request that waits or one that runs
            if tiers.acquire(digest) is not None:
                num_turns[digest] += held[digest] == 0
                held[digest] += 1
            else:
                tiers.request(digest)
        for digest in digests:  # the next one starts before the last one ends
            is_leaving = tiers.state(digest) is AdapterState.DRAINING
            if held[digest] > (0 if is_leaving else 1):
                tiers.release(digest)
                held[digest] -= 1
        time.sleep(0.002)
    tiers.integrity()
    for digest, count in held.items():
        for _ in range(count):
            tiers.release(digest)


def test_newcomers_do_not_put_off_who_has_waited_longest(
    create: Create, put_adapter: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones arrive all the time, and each of them could have what one that ends gives back."""
    monkeypatch.setattr("weft_adapters.loader._GRACE_S", 5.0)  # the small ones are due right after
    tiers = create(num_pages=2)
    large, *small = (put_adapter(seed, rank=8 if seed else 16) for seed in range(8))
    on_device(tiers, *small[:2])
    held = small[:2]
    for digest in held:
        assert tiers.acquire(digest) is not None
    deadline_s = time.monotonic() + 10
    while tiers.state(large) is not AdapterState.DEVICE:
        assert time.monotonic() < deadline_s, "the large one starves"
        tiers.request(large)
        time.sleep(0.01)
        for digest in small:
            if digest not in held and tiers.acquire(digest) is not None:
                held.append(digest)
            tiers.request(digest)
        if len(held) > 1 or (held and tiers.state(held[0]) is AdapterState.DRAINING):
            tiers.release(held.pop(0))
    for digest in held:
        tiers.release(digest)


def test_a_hint_drains_nothing(
    create: Create, put_adapter: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft_adapters.waitlist._PATIENCE_S", 0.1)
    monkeypatch.setattr("weft_adapters.table._WANTED_S", 0.05)
    tiers = create(num_pages=2)
    first, second, third = (put_adapter(seed) for seed in range(3))
    on_device(tiers, first, second)
    assert tiers.acquire(first) is not None
    assert tiers.acquire(second) is not None
    tiers.request(third)
    time.sleep(0.4)
    assert tiers.state(first) is tiers.state(second) is AdapterState.DEVICE
    tiers.release(first)
    tiers.release(second)


def test_nothing_is_evicted_in_vain(create: Create, put_adapter: Put) -> None:
    tiers = create(num_pages=3)
    used, idle = put_adapter(1, rank=16), put_adapter(2)
    large = put_adapter(3, rank=16)
    on_device(tiers, used, idle)
    assert tiers.acquire(used) is not None
    tiers.request(large)
    time.sleep(0.15)
    assert tiers.state(idle) is AdapterState.DEVICE
    tiers.release(used)
    wait_for(tiers, large, AdapterState.DEVICE)


def test_swapped_bytes_are_refused(create: Create, store: FolderStore, put_adapter: Put) -> None:
    tiers = create()
    digest, other = put_adapter(1), put_adapter(2)
    target = store.open(digest).tensors_path
    original = target.read_bytes()
    target.write_bytes(store.open(other).tensors_path.read_bytes())
    tiers.request(digest)
    wait_for(tiers, digest, AdapterState.FAILED)
    assert isinstance(tiers.failure(digest), DigestMismatchError)
    assert tiers.acquire(digest) is None
    tiers.request(digest)
    assert tiers.state(digest) is AdapterState.FAILED
    target.write_bytes(original)
    tiers.forget(digest)
    on_device(tiers, digest)
    assert tiers.failure(digest) is None


def test_a_swapped_config_is_refused(create: Create, store: FolderStore, put_adapter: Put) -> None:
    tiers = create()
    digest = put_adapter(1)
    config = store.open(digest).config_path
    config.write_bytes(config.read_bytes().replace(b'"lora_alpha": 8', b'"lora_alpha": 9'))
    tiers.request(digest)
    wait_for(tiers, digest, AdapterState.FAILED)
    assert isinstance(tiers.failure(digest), DigestMismatchError)


def test_a_missing_adapter_fails_alone(create: Create, put_adapter: Put) -> None:
    tiers = create()
    missing, present = "sha256:" + "e" * 64, put_adapter(1)
    tiers.request(missing)
    on_device(tiers, present)
    assert tiers.state(missing) is AdapterState.FAILED
    assert isinstance(tiers.failure(missing), AdapterNotStoredError)


def test_what_the_server_cannot_read_is_told_without_its_paths(
    create: Create, store: FolderStore, put_adapter: Put, tmp_path: Path
) -> None:
    tiers = create()
    digest = put_adapter(1)
    store.open(digest).tensors_path.unlink()
    tiers.request(digest)
    wait_for(tiers, digest, AdapterState.FAILED)
    assert str(tmp_path) not in str(tiers.failure(digest))
    assert isinstance(tiers.failure(digest), AdapterUnreadableError)


def test_a_failure_that_nobody_heard_of_does_not_meet_the_next_request(
    create: Create, store: FolderStore, put_adapter: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft_adapters.states._FAILURE_S", 0.05)
    tiers = create()
    digest = put_adapter(1)
    target = store.open(digest).tensors_path
    original = target.read_bytes()
    target.write_bytes(b"damaged")
    tiers.request(digest)
    wait_for(tiers, digest, AdapterState.FAILED)
    target.write_bytes(original)
    time.sleep(0.1)
    tiers.request(digest)
    assert tiers.failure(digest) is None
    wait_for(tiers, digest, AdapterState.DEVICE)


def test_a_listener_that_fails_does_not_end_the_loader(create: Create, put_adapter: Put) -> None:
    def fail() -> None:
        raise RuntimeError("the listener is broken")

    tiers = create(on_change=fail)
    on_device(tiers, put_adapter(1), put_adapter(2))


def test_an_adapter_larger_than_the_pool_fails_at_once(create: Create, put_adapter: Put) -> None:
    tiers = create(num_pages=2)
    small, large = put_adapter(1), put_adapter(2, rank=24)
    on_device(tiers, small)
    tiers.request(large)
    wait_for(tiers, large, AdapterState.FAILED)
    assert isinstance(tiers.failure(large), AdapterTooLargeError)
    assert "bytes" in str(tiers.failure(large))
    assert tiers.state(small) is AdapterState.DEVICE


def test_the_host_tier_is_bounded(create: Create, put_adapter: Put) -> None:
    one = 4 * (32 + 64) * 4
    tiers = create(num_pages=1, host_bytes=2 * one)
    digests = [put_adapter(seed) for seed in range(4)]
    on_device(tiers, *digests)
    tiers.integrity()
    states = [tiers.state(digest) for digest in digests]
    assert states == ["absent", "absent", "host", "device"]
    on_device(tiers, digests[0])


def test_many_threads(create: Create, put_adapter: Put, load_stored: Callable[[str], Any]) -> None:
    tiers = create(num_pages=4)
    digests = [put_adapter(seed) for seed in range(8)]
    expected = {d: torch.from_numpy(load_stored(d)[Q].a) for d in digests}
    errors: list[str] = []

    def use(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(25):
            digest = digests[random.integers(len(digests))]
            tiers.request(digest)
            deadline_s = time.monotonic() + 20
            while tiers.acquire(digest) is None:
                if time.monotonic() > deadline_s:
                    errors.append(f"{digest} never came: {tiers.states()}")
                    return
                tiers.request(digest)
                time.sleep(0.001)
            if not torch.equal(tiers._pool.read(digest, Q)[0][:4], expected[digest]):
                errors.append(f"{digest} has other weights")
            tiers.release(digest)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tiers.integrity()
        time.sleep(0.01)
    assert not errors
    tiers.integrity()
