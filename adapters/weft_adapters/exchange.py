"""Device memory that KV blocks and adapter pages lend each other, down to a floor of each.

Who lacks room gets it from who does not: adapters from blocks that nobody holds, blocks from pages
that nobody has, or of adapters that nobody uses. Nobody takes from a side that lacks room itself,
or has lacked it a moment ago. Memory is given back to the system before it is taken on the other
side, and is there before anybody is told of it; both by a thread of ours, so that no step of the
engine waits for either. Bytes that do not fill a block, or a page, are spare.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from weft_adapters.pool import PagePool
from weft_adapters.table import TierTable

logger = logging.getLogger("weft.adapters")

# a side that has lacked room keeps what it has for so long
_HOLD_S = 1.0


class BlockMemory(Protocol):
    """The memory behind KV blocks. Called by our thread, for blocks that nobody may use."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""

    def release(self, blocks: Sequence[int]) -> None:
        """Give their memory back."""

    def commit(self, blocks: Sequence[int]) -> None:
        """Have their memory there, zeroed."""


class MemoryExchange:
    """Between the pool of adapter pages and the owner of KV blocks, who calls `lack_blocks`,
    `take_blocks`, `num_blocks_wanted` and `give_blocks` from its own thread and never waits.

    min_adapter_bytes: the pool keeps so much.
    """

    def __init__(
        self, table: TierTable, pool: PagePool, memory: BlockMemory, min_adapter_bytes: int
    ) -> None:
        self._table, self._pool, self._memory = table, pool, memory
        self._min_adapter_bytes = min_adapter_bytes
        self._spare_bytes = 0
        self._lock = threading.Condition()
        self._given: list[int] = []  # blocks, their memory still there
        self._wanted: list[int] = []  # blocks, their memory not there
        self._granted: list[int] = []
        self._adapter_bytes_lacking = 0
        self._has_to_wait = False
        self._blocks_lacked_s = self._adapters_lacked_s = -_HOLD_S
        self._is_closing = False
        table.on_lack = self._lack_adapter_bytes
        self._thread = threading.Thread(target=self._run, name="weft-memory-exchange", daemon=True)
        self._thread.start()

    # ---- for the owner of the blocks ----

    def lack_blocks(self, withheld: Sequence[int]) -> None:
        """Requests lack blocks, and these, which the owner has withheld, would help."""
        with self._lock:
            self._blocks_lacked_s = time.monotonic()
            if not self._wanted and not self._granted:
                self._wanted = list(withheld)
                self._lock.notify()

    def take_blocks(self) -> list[int]:
        """Blocks of those that have memory now."""
        with self._lock:
            granted, self._granted = self._granted, []
            return granted

    @property
    def num_blocks_wanted(self) -> tuple[int, bool]:
        """How many blocks adapters could do with, and whether requests wait for such an adapter;
        0 while blocks are lacking themselves."""
        with self._lock:
            now = time.monotonic()
            is_over = now - self._adapters_lacked_s >= _HOLD_S
            if self._given or is_over or now - self._blocks_lacked_s < _HOLD_S:
                return 0, False
            lacking = self._adapter_bytes_lacking - self._spare_bytes
            return max(0, -(-lacking // self._memory.block_bytes)), self._has_to_wait

    def give_blocks(self, blocks: Sequence[int]) -> None:
        """The owner withholds these from now on."""
        with self._lock:
            self._given += blocks
            self._lock.notify()

    def close(self) -> None:
        with self._lock:
            self._is_closing = True
            self._lock.notify()
        self._thread.join()

    # ---- for the loader, which holds the table's lock ----

    def _lack_adapter_bytes(self, num_bytes: int, has_to_wait: bool) -> None:
        with self._lock:
            self._adapters_lacked_s = time.monotonic()
            self._adapter_bytes_lacking, self._has_to_wait = num_bytes, has_to_wait

    # ---- the thread ----

    def _run(self) -> None:
        while True:
            with self._lock:
                while not (self._given or self._wanted or self._is_closing):
                    self._lock.wait()
                if self._is_closing:
                    return
                given, wanted = list(self._given), self._wanted  # more may be given meanwhile
            try:
                if given:
                    self._enlarge_pool(given)
                else:
                    self._shrink_pool(wanted)
            except OSError:  # what is in use stays so; the rest is lent to nobody
                logger.exception("memory could not be moved between KV blocks and adapters")
            with self._lock:
                if given:
                    self._given = self._given[len(given) :]
                else:
                    self._wanted = []

    def _enlarge_pool(self, blocks: Sequence[int]) -> None:
        self._memory.release(blocks)
        spare_bytes = self._spare_bytes + len(blocks) * self._memory.block_bytes
        self._spare_bytes = spare_bytes - self._pool.grow(spare_bytes)
        with self._lock:
            self._adapter_bytes_lacking = 0
        with self._table.lock:
            self._table.retry()
            self._table.lock.notify_all()

    def _shrink_pool(self, blocks: Sequence[int]) -> None:
        """As many of the blocks as can be had."""
        needed = len(blocks) * self._memory.block_bytes - self._spare_bytes
        needed = min(needed, self._pool.num_bytes - self._min_adapter_bytes)
        with self._lock:
            is_held = time.monotonic() - self._adapters_lacked_s < _HOLD_S
        if needed > 0 and not is_held:
            with self._table.lock:
                while self._pool.num_free_bytes < needed and self._table.evict_one(needed):
                    pass
            self._spare_bytes += self._pool.shrink(needed)
        num_blocks = min(len(blocks), self._spare_bytes // self._memory.block_bytes)
        if num_blocks:
            self._memory.commit(blocks[:num_blocks])
            self._spare_bytes -= num_blocks * self._memory.block_bytes
            with self._lock:
                self._granted += blocks[:num_blocks]
