"""KV blocks and adapter pages lend each other room: who lacks it gets it, and floors hold.

Real memory on the CPU; only the blocks' owner is played.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from weft_adapters.exchange import MemoryExchange
from weft_adapters.pool import PagePool
from weft_adapters.sites import BaseSpec
from weft_adapters.states import AdapterState
from weft_adapters.store import FolderStore
from weft_adapters.tiers import AdapterTiers
from weft_kernels.memory import Reserved

PAGE_BYTES = 8 * (32 + 64) * 4  # of q_proj
BLOCK_BYTES = 1024
Put = Callable[..., str]


class Blocks:
    """Which blocks have memory, as the exchange leaves them."""

    block_bytes = BLOCK_BYTES

    def __init__(self, num_blocks: int, num_held: int) -> None:
        self.memory = Reserved(num_blocks, BLOCK_BYTES // 4, dtype=torch.float32)
        self.held = set(range(num_held))
        self.calls: list[str] = []
        self.commit(range(num_held))

    def release(self, blocks: Sequence[int]) -> None:
        self.calls.append("release")
        self.held -= set(blocks)
        for block in blocks:
            self.memory.release(block * 256, (block + 1) * 256)

    def commit(self, blocks: Sequence[int]) -> None:
        self.calls.append("commit")
        self.held |= set(blocks)
        for block in blocks:
            self.memory.commit(block * 256, (block + 1) * 256)


Made = tuple[AdapterTiers, MemoryExchange, PagePool, Blocks]
Create = Callable[[int, int], Made]


@pytest.fixture
def create(
    dense: BaseSpec, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Create]:
    """(pages of q_proj that the pool has, and keeps) -> tiers beside 12 blocks, memory for 20."""
    monkeypatch.setattr("weft_adapters.loader._GRACE_S", 0.05)
    monkeypatch.setattr("weft_adapters.loader._RETRY_S", 0.025)
    monkeypatch.setattr("weft_adapters.exchange._HOLD_S", 0.2)
    made: list[AdapterTiers] = []

    def build(num_pages: int, min_pages: int) -> Made:
        pool = PagePool(
            dense, num_pages * PAGE_BYTES, torch.float32, "cpu", keep_checksums=True,
            max_bytes=num_pages * PAGE_BYTES + 12 * BLOCK_BYTES,
        )  # fmt: skip
        tiers, blocks = AdapterTiers(store, dense, pool, 2**20), Blocks(20, 12)
        exchange = tiers.lend(blocks, min_pages * PAGE_BYTES)
        made.append(tiers)
        return tiers, exchange, pool, blocks

    yield build
    for tiers in made:
        tiers.integrity()
        tiers.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.002)


def take(exchange: MemoryExchange, count: int) -> list[int]:
    """So many blocks that were granted."""
    granted: list[int] = []

    def has_all() -> bool:
        granted.extend(exchange.take_blocks())
        return len(granted) >= count

    wait_for(has_all)
    return granted


def on_device(tiers: AdapterTiers, digest: str) -> None:
    tiers.request(digest)
    wait_for(lambda: tiers.state(digest) is AdapterState.DEVICE)


def test_adapters_that_find_no_room_get_that_of_blocks_nobody_holds(
    create: Create, put_adapter: Put
) -> None:
    tiers, exchange, pool, blocks = create(1, 1)
    first, second = put_adapter(1), put_adapter(2)
    on_device(tiers, first)
    assert tiers.acquire(first) is not None
    tiers.request(second)
    wait_for(lambda: exchange.num_blocks_wanted[0])
    num_wanted, is_waited_for = exchange.num_blocks_wanted
    assert (num_wanted, is_waited_for) == (-(-PAGE_BYTES // BLOCK_BYTES), True)
    exchange.give_blocks([9, 10, 11])
    wait_for(lambda: tiers.state(second) is AdapterState.DEVICE)
    assert pool.num_bytes == 2 * PAGE_BYTES
    assert blocks.held == set(range(9))
    assert exchange.num_blocks_wanted[0] == 0


def test_requests_that_lack_blocks_get_the_room_of_adapters_nobody_uses(
    create: Create, put_adapter: Put
) -> None:
    tiers, exchange, pool, blocks = create(3, 1)
    used, idle = put_adapter(1), put_adapter(2)
    on_device(tiers, used)
    assert tiers.acquire(used) is not None
    on_device(tiers, idle)
    time.sleep(0.06)  # it was promised to who asked for it
    exchange.lack_blocks(list(range(12, 20)))
    granted = take(exchange, 6)
    assert pool.num_bytes == PAGE_BYTES, "its floor"
    assert granted == [12, 13, 14, 15, 16, 17], "two pages of 3,072 bytes each"
    assert blocks.held == set(range(18))
    assert tiers.state(used) is AdapterState.DEVICE
    assert tiers.state(idle) is not AdapterState.DEVICE
    assert not blocks.memory.tensor.any()


def test_who_lacks_room_itself_lends_none(create: Create, put_adapter: Put) -> None:
    tiers, exchange, pool, _ = create(2, 1)
    digests = [put_adapter(seed) for seed in (1, 2, 3)]
    for digest in digests[:2]:
        on_device(tiers, digest)
        assert tiers.acquire(digest) is not None
    tiers.request(digests[2])
    wait_for(lambda: exchange.num_blocks_wanted[0])
    exchange.lack_blocks([12, 13])
    assert exchange.num_blocks_wanted == (0, False)
    time.sleep(0.1)
    assert exchange.take_blocks() == []
    assert pool.num_bytes == 2 * PAGE_BYTES


def test_room_that_was_lent_is_lent_back_and_holds_zeros(create: Create, put_adapter: Put) -> None:
    tiers, exchange, pool, blocks = create(1, 1)
    blocks.memory.tensor.fill_(float("nan"))
    exchange.give_blocks([6, 7, 8, 9, 10, 11])
    wait_for(lambda: pool.num_bytes == 3 * PAGE_BYTES)
    exchange.lack_blocks([6, 7, 8, 9, 10, 11])
    take(exchange, 6)
    assert pool.num_bytes == PAGE_BYTES
    assert not blocks.memory.tensor[6:12].any()
    on_device(tiers, put_adapter(1))
