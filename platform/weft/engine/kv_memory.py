"""A KV cache on the CPU whose blocks can give their memory back, and have it again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weft.engine.kv_cache import find_runs
from weft.engine.model.decoder import KVCache
from weft_kernels.attention import Int8Cache
from weft_kernels.memory import Reserved


class LentKVCache:
    """`cache` has addresses for `num_blocks` blocks, and memory for the first `num_held` of them.

    shape = (block_size, num_kv_heads, head_dim); int8 brings its scales. Blocks that have memory
    and no tokens yet are zeros, as everywhere.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        num_held: int,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> None:
        self._parts: list[Reserved] = []

        def reserve(*size: int, dtype: torch.dtype) -> torch.Tensor:
            self._parts.append(Reserved(num_blocks, *size, dtype=dtype))
            return self._parts[-1].tensor

        def create() -> torch.Tensor | Int8Cache:
            data = reserve(*shape, dtype=dtype)
            if dtype is not torch.int8:
                return data
            return Int8Cache(data, reserve(*shape[:2], 1, dtype=torch.float32))

        k, v = (tuple(create() for _ in range(num_layers)) for _ in range(2))
        self.cache = KVCache(k, v)
        self.commit(range(num_held))

    @property
    def block_bytes(self) -> int:
        """Of one block in all layers, scales included."""
        return sum(tensor[0].nbytes for tensor in self.cache.tensors())

    def release(self, blocks: Sequence[int]) -> None:
        """Give their memory back to the system; OSError where it does not take it."""
        for part in self._parts:
            for start, stop in _bounds(part, blocks):
                part.release(start, stop)

    def commit(self, blocks: Sequence[int]) -> None:
        """Have their memory there, zeroed."""
        for part in self._parts:
            for start, stop in _bounds(part, blocks):
                part.commit(start, stop)


def _bounds(part: Reserved, blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Elements of blocks that follow each other, a run at a time."""
    size = part.tensor[0].numel()
    runs = ((blocks[run[0]], len(run)) for run in find_runs(blocks))
    return [(first * size, (first + count) * size) for first, count in runs]
