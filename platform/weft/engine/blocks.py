"""The KV cache's blocks: who owns which, by reference count. Plain Python, no tensors.

Block 0 is the null block: never given out, always zero, the target of padded block tables.
"""

from __future__ import annotations

from collections import deque


class BlockManager:
    """Gives out blocks of `block_size` tokens.

    Invariant: free + used = `num_blocks - 1`, and no block is free and referenced at once.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"the KV cache needs at least 2 blocks, not {num_blocks}")
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._free: deque[int] = deque(range(1, num_blocks))
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_usable(self) -> int:
        """All blocks but the null block."""
        return self.num_blocks - 1

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, count: int) -> bool:
        return count <= len(self._free)

    def allocate(self, count: int) -> list[int]:
        assert self.can_allocate(count), "ask can_allocate first"
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def release(self, blocks: list[int]) -> None:
        """Drop one reference to each block; those without any are free again."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is released more than taken"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def integrity(self) -> None:
        """Raise AssertionError when the invariant does not hold."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert 0 not in free, "the null block was given out"
        used = {b for b in range(1, self.num_blocks) if self._references[b] > 0}
        assert not free & used, "a block is free and used at once"
        assert len(free) + len(used) == self.num_usable, "a block is lost"
