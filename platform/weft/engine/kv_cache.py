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
    `is_pinned`: in host memory that a CUDA device copies to and from while the host goes on; torch
    rounds each tensor's up to a power of two bytes."""

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
    from_blocks, to_blocks = zip(*pairs, strict=True)
    tensors = list(zip(source.tensors(), target.tensors(), strict=True))
    from_device, to_device = (tensor.device for tensor in tensors[0])
    if from_device == to_device:
        from_index, to_index = _index(from_blocks, from_device), _index(to_blocks, to_device)
        for old, new in tensors:
            new.index_copy_(0, to_index, old.index_select(0, from_index))
    elif to_device.type == "cpu":
        runs = find_runs(to_blocks)
        index = _index([from_blocks[i] for run in runs for i in run], from_device)
        for old, new in tensors:
            _copy_runs(old.index_select(0, index), new, runs, to_blocks, to_host=True)
    else:
        runs = find_runs(from_blocks)
        index = _index([to_blocks[i] for run in runs for i in run], to_device)
        for old, new in tensors:
            staged = new.new_empty(len(pairs), *new.shape[1:])
            _copy_runs(staged, old, runs, from_blocks, to_host=False)
            new.index_copy_(0, index, staged)


def find_runs(blocks: Sequence[int]) -> list[list[int]]:
    """Places in `blocks` of numbers that follow each other, run by run."""
    runs: list[list[int]] = []
    for place in sorted(range(len(blocks)), key=blocks.__getitem__):
        if runs and blocks[place] == blocks[runs[-1][-1]] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _copy_runs(
    staged: Tensor, host: Tensor, runs: Sequence[Sequence[int]], blocks: Sequence[int], *,
    to_host: bool,
) -> None:  # fmt: skip
    """Between the device, where blocks lie in the order of the runs, and the host: a copy a run."""
    start = 0
    for run in runs:
        first, count = blocks[run[0]], len(run)
        device_part, host_part = staged[start : start + count], host[first : first + count]
        to, of = (host_part, device_part) if to_host else (device_part, host_part)
        to.copy_(of, non_blocking=True)
        start += count


def clean_blocks(cache: KVCache, blocks: Sequence[int]) -> None:
    """Zero blocks that may hold non-finite values: 0 x NaN would reach their next owner."""
    index = _index(blocks, cache.tensors()[0].device)
    for tensor in cache.tensors():
        tensor.index_fill_(0, index, 0)


def _index(blocks: Sequence[int], device: torch.device) -> Tensor:
    """int64 `[N]`. From pinned memory, which is kept until the copy is over."""
    index = torch.tensor(blocks, dtype=torch.int64, pin_memory=device.type == "cuda")
    return index.to(device, non_blocking=True)
