"""The scheduler's side of the memory that KV blocks and adapter pages lend each other. No tensors.

Works between steps, when nothing that was scheduled still reads a block that has become free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from weft.engine.scheduler import Scheduler

# asked for at a time, as a part of all blocks: to move them one by one costs more than they bring
_LEAST_PART = 1 / 16


class Lender(Protocol):
    """`weft_adapters.exchange.MemoryExchange`, as the blocks' owner sees it; no call waits."""

    def lack_blocks(self, withheld: Sequence[int]) -> None:
        """Requests lack blocks, and these would help."""

    def take_blocks(self) -> list[int]:
        """Blocks that have memory now."""

    @property
    def num_blocks_wanted(self) -> tuple[int, bool]:
        """How many the other side could do with, and whether requests wait for that."""

    def give_blocks(self, blocks: Sequence[int]) -> None:
        """These are withheld from now on."""


class BlockLending:
    """Lends blocks and has them back; the scheduler keeps `min_blocks` at least, and one for each
    sequence that runs."""

    def __init__(self, scheduler: Scheduler, lender: Lender, min_blocks: int) -> None:
        self._scheduler, self._lender, self._min_blocks = scheduler, lender, min_blocks
        self._num_preemptions = 0

    def balance(self) -> None:
        """Before a step is scheduled, with none in flight."""
        blocks = self._scheduler.blocks
        blocks.restore(self._lender.take_blocks())
        num_preemptions = self._scheduler.num_preemptions
        has_lacked = self._scheduler.lacks_blocks or num_preemptions > self._num_preemptions
        self._num_preemptions = num_preemptions
        if has_lacked:
            if blocks.num_withheld:
                count = max(1, int(blocks.num_blocks * _LEAST_PART))
                self._lender.lack_blocks(blocks.withheld(count))
            return
        num_wanted, is_waited_for = self._lender.num_blocks_wanted
        num_left = blocks.num_free if is_waited_for else blocks.num_free - blocks.num_cached
        count = min(
            num_wanted,
            blocks.num_usable - self._min_blocks,
            num_left - len(self._scheduler.running),
        )
        if count > 0:
            self._lender.give_blocks(blocks.withhold(count))
