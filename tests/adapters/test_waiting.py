"""Adapters that find no room on the device: all have turns, and nobody is stalled for nothing.

Waiting times are a tenth of the server's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from weft_adapters.pool import PagePool, Prepare
from weft_adapters.sites import BaseSpec
from weft_adapters.states import AdapterState
from weft_adapters.store import FolderStore, StoredAdapter
from weft_adapters.tiers import AdapterTiers
from weft_adapters.waitlist import Waitlist

PAGE_BYTES = 8 * (32 + 64) * 4  # of q_proj
Put = Callable[..., str]
Create = Callable[..., AdapterTiers]


class SlowStore:
    """Counts what is opened; each takes a while."""

    def __init__(self, store: FolderStore, seconds: float) -> None:
        self._store, self._seconds = store, seconds
        self.num_opened = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def open(self, digest: str) -> StoredAdapter:
        time.sleep(self._seconds)
        self.num_opened += 1
        return self._store.open(digest)


@pytest.fixture
def create(
    dense: BaseSpec, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Create]:
    """(prepare, store, host_bytes) -> tiers with room for two pages of q_proj."""
    monkeypatch.setattr("weft_adapters.loader._GRACE_S", 0.5)
    monkeypatch.setattr("weft_adapters.loader._RETRY_S", 0.025)
    monkeypatch.setattr("weft_adapters.table._WANTED_S", 0.5)
    monkeypatch.setattr("weft_adapters.waitlist._PATIENCE_S", 0.2)
    made: list[AdapterTiers] = []

    def build(
        prepare: Prepare | None = None, *, store: Any = store, host_bytes: int = 2**20,
        num_pages: int = 2,
    ) -> AdapterTiers:  # fmt: skip
        pool = PagePool(dense, num_pages * PAGE_BYTES, torch.float32, "cpu", keep_checksums=True)
        if prepare is not None:
            pool.prepare_with(prepare)
        made.append(AdapterTiers(store, dense, pool, host_bytes))
        return made[-1]

    yield build
    for tiers in made:
        tiers.integrity()
        tiers.close()


def on_device(tiers: AdapterTiers, *digests: str) -> None:
    deadline_s = time.monotonic() + 10
    for digest in digests:
        tiers.request(digest)
        while tiers.state(digest) is not AdapterState.DEVICE:
            assert time.monotonic() < deadline_s
            time.sleep(0.002)


class Users:
    """Each adapter always has requests: one that runs for `RUN_S` and one that starts before the
    first has ended, so that an adapter in use is so without a pause."""

    RUN_S = 0.1

    def __init__(self, tiers: AdapterTiers, digests: Sequence[str]) -> None:
        self._tiers, self._digests = tiers, digests
        self._ends: dict[str, list[float]] = {digest: [] for digest in digests}
        self._started = dict.fromkeys(digests, 0.0)
        self.num_turns = dict.fromkeys(digests, 0)

    def run_until_each_had(self, num_turns: int, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        while min(self.num_turns.values()) < num_turns:
            assert time.monotonic() < deadline_s, f"turns: {list(self.num_turns.values())}"
            self._tick(time.monotonic())
            time.sleep(0.002)
        for digest, ends in self._ends.items():
            for _ in ends:
                self._tiers.release(digest)

    def _tick(self, now: float) -> None:
        for digest, ends in self._ends.items():
            while ends and ends[0] <= now:
                ends.pop(0)
                self._tiers.release(digest)
        for digest in self._digests:
            if len(self._ends[digest]) == 2 or now - self._started[digest] < self.RUN_S / 2:
                continue
            if self._tiers.acquire(digest) is None:
                self._tiers.request(digest)
                continue
            self.num_turns[digest] += 1
            self._ends[digest].append(now + self.RUN_S)
            self._started[digest] = now


@pytest.mark.parametrize("num_adapters", [3, 5])
def test_more_adapters_in_use_than_have_room_all_have_turns(
    create: Create, put_adapter: Put, num_adapters: int
) -> None:
    tiers = create()
    digests = [put_adapter(seed) for seed in range(num_adapters)]
    on_device(tiers, *digests[:2])
    Users(tiers, digests).run_until_each_had(4, seconds=20)


def test_room_in_holes_too_small_starves_nobody(create: Create, put_adapter: Put) -> None:
    tiers = create()  # 12 units: q_proj wants 6 in one piece, down_proj 5
    digests = [put_adapter(seed, modules=("mlp.down_proj",)) for seed in (1, 2)]
    on_device(tiers, *digests)
    Users(tiers, [*digests, put_adapter(3)]).run_until_each_had(2, seconds=20)


def test_who_had_to_drain_is_open_again_when_the_load_fails(
    create: Create, put_adapter: Put
) -> None:
    is_broken = False

    def prepare(sites: object) -> None:
        if is_broken:
            raise ValueError("it does not fit the table")

    tiers = create(prepare, num_pages=3)
    used, other, large = put_adapter(1, rank=16), put_adapter(2), put_adapter(3, rank=16)
    on_device(tiers, other, used)
    for digest in (used, other):
        assert tiers.acquire(digest) is not None
    while AdapterState.DRAINING not in (tiers.state(used), tiers.state(other)):
        tiers.request(large)
        time.sleep(0.01)
    is_broken = True
    tiers.release(used)
    tiers.release(other)
    deadline_s = time.monotonic() + 10
    while tiers.failure(large) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert AdapterState.DRAINING not in tiers.states().values()


def test_an_idle_adapter_stays_open_while_others_have_to_end_first(
    create: Create, put_adapter: Put
) -> None:
    tiers = create(num_pages=3)
    busy, warm, large = put_adapter(1, rank=16), put_adapter(2), put_adapter(3, rank=24)
    on_device(tiers, warm, busy)
    assert tiers.acquire(busy) is not None
    tiers.acquire(warm)
    tiers.release(warm)
    deadline_s = time.monotonic() + 10
    while tiers.state(busy) is not AdapterState.DRAINING:
        assert time.monotonic() < deadline_s
        tiers.request(large)
        time.sleep(0.01)
    assert tiers.acquire(warm) is not None
    tiers.release(warm)
    tiers.release(busy)


def test_newcomers_are_not_read_before_who_is_due_has_its_room(
    create: Create, put_adapter: Put, store: FolderStore
) -> None:
    slow = SlowStore(store, 0.02)
    tiers = create(store=slow)
    first, second, waiting = (put_adapter(seed) for seed in range(3))
    newcomers = [put_adapter(100 + seed) for seed in range(60)]
    on_device(tiers, first, second)
    for digest in (first, second):
        assert tiers.acquire(digest) is not None
    for _ in range(30):
        tiers.request(waiting)
        time.sleep(0.01)
    num_opened = slow.num_opened
    for digest in newcomers:
        tiers.request(digest)
    tiers.release(first)
    tiers.release(second)
    deadline_s = time.monotonic() + 10
    while tiers.state(waiting) is not AdapterState.DEVICE:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    assert slow.num_opened - num_opened <= 3


def test_what_nobody_asks_for_any_more_is_not_read_again_and_again(
    create: Create, put_adapter: Put, store: FolderStore
) -> None:
    slow = SlowStore(store, 0.0)
    tiers = create(store=slow, host_bytes=1)
    first, second, *others = (put_adapter(seed) for seed in range(4))
    on_device(tiers, first, second)
    for digest in (first, second):
        assert tiers.acquire(digest) is not None
    for digest in others:
        tiers.request(digest)
    time.sleep(1.0)
    num_opened = slow.num_opened
    time.sleep(0.5)
    assert slow.num_opened == num_opened
    tiers.release(first)
    tiers.release(second)


def test_who_is_being_tried_again_is_not_overtaken_by_the_one_after_it() -> None:
    waiting = Waitlist()
    waiting.add("first", 100, now=0.0)
    waiting.add("second", 100, now=1.0)
    assert waiting.take(room=100) == ["first"]
    assert waiting.due(now=60.0) == "first"
    assert waiting.is_before("second", now=60.0)
    assert waiting.is_before("newcomer", now=60.0)
    assert not waiting.is_before("first", now=60.0)


def test_who_has_to_be_fetched_again_keeps_its_place_and_nobody_waiting() -> None:
    waiting = Waitlist()
    waiting.add("first", 100, now=0.0)
    waiting.add("second", 100, now=1.0)
    waiting.take(room=100)
    waiting.set_aside("first")
    assert waiting.due(now=60.0) == "second"
    waiting.add("first", 100, now=60.0)
    assert waiting.due(now=60.0) == "first"


def test_who_waits_for_a_first_token_is_before_who_goes_on_but_not_for_ever() -> None:
    waiting = Waitlist()
    waiting.add("paused", 100, now=0.0)
    waiting.add("new", 100, now=1.0, is_new=True)
    assert waiting.due(now=1.0) == "new"
    waiting.add("late", 100, now=10.0, is_new=True)
    waiting.end("new")
    assert waiting.due(now=10.0) == "paused"
