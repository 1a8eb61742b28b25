"""What the tiers say of each adapter that is here: its state, rank, bytes, users and failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from weft_adapters.pool import PagePool
from weft_adapters.sites import BaseSpec
from weft_adapters.states import AdapterState, Placement
from weft_adapters.store import FolderStore
from weft_adapters.tiers import AdapterTiers

PAGE_BYTES = 8 * (32 + 64) * 4


@pytest.fixture
def tiers(
    dense: BaseSpec, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AdapterTiers]:
    """Room for one page of a q_proj on the device."""
    monkeypatch.setattr("weft_adapters.loader._GRACE_S", 0.0)
    monkeypatch.setattr("weft_adapters.loader._RETRY_S", 0.02)
    tiers = AdapterTiers(store, dense, PagePool(dense, PAGE_BYTES, torch.float32, "cpu"), 2**20)
    yield tiers
    tiers.close()


def wait_for(tiers: AdapterTiers, digest: str, state: AdapterState) -> dict[str, Placement]:
    deadline_s = time.monotonic() + 10
    while tiers.state(digest) is not state:
        assert time.monotonic() < deadline_s, tiers.placements()
        time.sleep(0.002)
    return {placement.digest: placement for placement in tiers.placements()}


def test_a_placement_follows_its_adapter(
    tiers: AdapterTiers, put_adapter: Callable[..., str]
) -> None:
    first, second = put_adapter(1, rank=4), put_adapter(2, rank=8)
    assert tiers.placements() == []
    tiers.request(first)
    found = wait_for(tiers, first, AdapterState.DEVICE)
    assert found == {first: Placement(first, AdapterState.DEVICE, 0, 4, PAGE_BYTES)}
    assert tiers.acquire(first) is not None
    tiers.pin(first)
    (placement,) = tiers.placements()
    assert (placement.num_references, placement.is_pinned) == (1, True)
    assert tiers.placement(first) == placement
    tiers.pin(first, False)
    tiers.release(first)
    tiers.request(second)  # takes the one page
    found = wait_for(tiers, second, AdapterState.DEVICE)
    assert found[second].rank == 8
    factor_bytes = 4 * (32 + 64) * 4
    assert found[first] == Placement(first, AdapterState.HOST, 0, 4, factor_bytes)


def test_a_failure_is_told(tiers: AdapterTiers) -> None:
    digest = "sha256:" + "f" * 64
    tiers.request(digest)
    (placement,) = wait_for(tiers, digest, AdapterState.FAILED).values()
    assert (placement.rank, placement.num_bytes) == (0, 0)
    assert placement.failure is not None
    assert "no adapter" in placement.failure


def test_load_times_are_taken_once(tiers: AdapterTiers, put_adapter: Callable[..., str]) -> None:
    digests = [put_adapter(seed) for seed in (1, 2)]
    started_s = time.monotonic()
    for digest in digests:
        tiers.request(digest)
        wait_for(tiers, digest, AdapterState.DEVICE)
    tiers.request(digest)  # it is there
    limit_s = time.monotonic() - started_s
    times_s = tiers.take_load_times(drain=False)
    assert len(times_s) == 2
    assert all(0 < seconds < limit_s for seconds in times_s)
    assert tiers.take_load_times(drain=True) == times_s
    assert tiers.take_load_times(drain=True) == ()


def test_an_adapter_is_unloaded_when_nobody_uses_it_any_more(
    tiers: AdapterTiers, put_adapter: Callable[..., str]
) -> None:
    digest = put_adapter(1)
    tiers.request(digest)
    wait_for(tiers, digest, AdapterState.DEVICE)
    assert tiers.acquire(digest) is not None
    tiers.unload(digest)
    time.sleep(0.05)
    tiers.integrity()
    assert tiers.placement(digest).state is AdapterState.DEVICE  # a request still uses it
    tiers.release(digest)
    wait_for(tiers, digest, AdapterState.ABSENT)
    assert tiers.placements() == []
    tiers.integrity()
    tiers.unload(digest)  # once more changes nothing
    tiers.request(digest)
    wait_for(tiers, digest, AdapterState.DEVICE)
    tiers.integrity()


def test_a_request_that_comes_before_it_has_left_keeps_it(
    tiers: AdapterTiers, put_adapter: Callable[..., str]
) -> None:
    digest = put_adapter(1)
    tiers.request(digest)
    wait_for(tiers, digest, AdapterState.DEVICE)
    assert tiers.acquire(digest) is not None
    tiers.unload(digest)
    assert tiers.acquire(digest) is not None
    tiers.release(digest)
    tiers.release(digest)
    time.sleep(0.05)
    assert tiers.placement(digest).state is AdapterState.DEVICE
    tiers.integrity()


def test_what_is_in_host_memory_alone_is_dropped_from_it(
    tiers: AdapterTiers, put_adapter: Callable[..., str]
) -> None:
    first, second = put_adapter(1), put_adapter(2)
    for digest in (first, second):
        tiers.request(digest)
        wait_for(tiers, digest, AdapterState.DEVICE)
    assert tiers.placement(first).state is AdapterState.HOST
    tiers.unload(first)
    assert tiers.placement(first).state is AdapterState.ABSENT
    assert tiers.placement(second).state is AdapterState.DEVICE
    tiers.integrity()
