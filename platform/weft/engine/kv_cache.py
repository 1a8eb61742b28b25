"""The KV caches of device and host: made here, and their blocks copied and cleaned.

All of it is queued on the current stream: nothing waits for a device. What a host cache holds is
only read and written by such copies, so it needs to be there no sooner than the stream is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weft.engine.model.decoder import KVCache
from weft_kernels.attention import Int8Cache
from weft_kernels.memory import zeros


def create_kv_cache(
    num_layers: int,
    num_blocks: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    is_pinned: bool = False,
) -> KVCache:
    """Zeroed caches; `shape` = (block_size, num_kv_heads, head_dim); int8 brings its scales.
    `is_pinned`: in host memory that a CUDA device copies to and from while the host goes on."""

    def create_zeros(*size: int, dtype: torch.dtype) -> Tensor:
        if is_pinned:
            return torch.zeros(*size, dtype=dtype, pin_memory=True)
        return zeros(*size, dtype=dtype, device=device)

    def create() -> Tensor | Int8Cache:
        data = create_zeros(num_blocks, *shape, dtype=dtype)
        if dtype is not torch.int8:
            return data
        return Int8Cache(data, create_zeros(num_blocks, *shape[:2], 1, dtype=torch.float32))

    k, v = (tuple(create() for _ in range(num_layers)) for _ in range(2))
    return KVCache(k, v)


def copy_blocks(source: KVCache, target: KVCache, pairs: Sequence[tuple[int, int]]) -> None:
    """Copy whole blocks (from, to). Within a cache all are read before any is written."""
    if not pairs:
        return
    tensors = list(zip(source.tensors(), target.tensors(), strict=True))
    device = tensors[0][0].device
    if device != tensors[0][1].device:
        # a gather would have to be over before the other side could scatter
        for old, new in tensors:
            for from_block, to_block in pairs:
                new[to_block].copy_(old[from_block], non_blocking=True)
        return
    from_blocks, to_blocks = (_index(side, device) for side in zip(*pairs, strict=True))
    for old, new in tensors:
        new.index_copy_(0, to_blocks, old.index_select(0, from_blocks))


def clean_blocks(cache: KVCache, blocks: Sequence[int]) -> None:
    """Zero blocks that may hold non-finite values: 0 x NaN would reach their next owner."""
    index = _index(blocks, cache.tensors()[0].device)
    for tensor in cache.tensors():
        tensor.index_fill_(0, index, 0)


def _index(blocks: Sequence[int], device: torch.device) -> Tensor:
    """int64 `[N]`. From pinned memory, which is kept until the copy is over."""
    index = torch.tensor(blocks, dtype=torch.int64, pin_memory=device.type == "cuda")
    return index.to(device, non_blocking=True)
