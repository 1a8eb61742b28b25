"""Paged attention: queries of a mixed batch against KV blocks named by block tables.

    o[t, h] = sum_j softmax_j(scale * q[t, h] . k[j, h / G]) v[j, h / G],
        position(t) - window < j <= position(t)

over the tokens j of t's own request (grouped-query attention, Ainslie et al. 2023; sliding window,
Jiang et al. 2023; block tables, Kwon et al. 2023). A layer without a window sees all before. Blocks
that fell out of every window are masked, not freed: another layer may still look there. Requests
with chunks and contexts of like length run in one padded call.

Legend: T rows, B requests of a bucket, Q queries per request, L keys, N KV heads, G query heads per
KV head, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class AttentionBucket:
    """Requests that run in one padded call.

    rows int64 `[B * Q]`: batch row of each query cell (0 where empty); valid int64: the cells that
    hold a query, and valid_rows their batch rows; block_tables int64 `[B, num_blocks]` (block 0,
    the null block, where a table is shorter); masks by window (None: all before): bool
    `[B, 1, Q, L]`, True where a query may look. An empty cell looks at key 0 alone, so that its
    softmax is finite. `is_in_order`: no cell is empty, and they are the batch's first rows.
    `bias` gives the masks as layers add them to the scores, worked out by the first that does.
    """

    rows: Tensor
    valid: Tensor
    valid_rows: Tensor
    block_tables: Tensor
    masks: Mapping[int | None, Tensor]
    is_in_order: bool
    _biases: dict[tuple[int | None, int, torch.dtype], Tensor] = field(default_factory=dict)

    def bias(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """0 where a query may look and -inf elsewhere: `[B, 1, G Q, L]`, or `[B, 1, 1, L]` where
        there is one query."""
        key = (window, groups, dtype)
        bias = self._biases.get(key)
        if bias is None:
            mask = self.masks[window]
            bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
            if mask.shape[2] > 1:
                bias = bias.repeat(1, 1, groups, 1)
            self._biases[key] = bias
        return bias


def create_attention_buckets(
    spans: Sequence[tuple[int, int, int]],
    tables: Sequence[Sequence[int]],
    block_size: int,
    device: torch.device,
    windows: Sequence[int | None] = (None,),
) -> tuple[AttentionBucket, ...]:
    """Bucket requests by the next power of two of chunk and context length.

    spans[i] = (first batch row, chunk length, context length with the chunk); tables[i] = blocks;
    windows: the distinct ones of the layers, None for layers without.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, (_, num_new, num_total) in enumerate(spans):
        # a context bucket spans a factor of four: a call costs more than some masked keys
        key = ((num_new - 1).bit_length(), (num_total - 1).bit_length() // 2)
        by_size.setdefault(key, []).append(i)
    return tuple(
        _create_bucket(
            [spans[i] for i in ids], [tables[i] for i in ids], block_size, device, windows
        )
        for ids in by_size.values()
    )


def _create_bucket(
    spans: Sequence[tuple[int, int, int]],
    tables: Sequence[Sequence[int]],
    block_size: int,
    device: torch.device,
    windows: Sequence[int | None],
) -> AttentionBucket:
    # numpy, as these are many operations on a few numbers each
    first, new, total = (np.array(column) for column in zip(*spans, strict=True))
    num_blocks = -(-int(total.max()) // block_size)
    table = np.zeros((len(spans), num_blocks), dtype=np.int64)
    for i, blocks in enumerate(tables):
        used = blocks[:num_blocks]
        table[i, : len(used)] = used
    query = np.arange(new.max())
    is_query = query[None] < new[:, None]
    rows = np.where(is_query, first[:, None] + query[None], 0)
    last_key = np.where(is_query, (total - new)[:, None] + query[None], 0)[:, :, None]
    key = np.arange(num_blocks * block_size)
    before = key <= last_key
    masks = {w: before if w is None else before & (key > last_key - w) for w in windows}
    valid = is_query.ravel().nonzero()[0]
    valid_rows = rows.ravel()[valid]
    return AttentionBucket(
        rows=torch.from_numpy(rows.ravel()).to(device),
        valid=torch.from_numpy(valid).to(device),
        valid_rows=torch.from_numpy(valid_rows).to(device),
        block_tables=torch.from_numpy(table).to(device),
        masks={w: torch.from_numpy(mask[:, None]).to(device) for w, mask in masks.items()},
        is_in_order=bool(is_query.all() and (np.diff(valid_rows, prepend=-1) == 1).all()),
    )


@dataclass(frozen=True, slots=True)
class Int8Cache:
    """Keys or values of one layer as `x[d] = s q[d]` for each token and head, `s = max |x| / 127`.

    data: int8 `[num_blocks, block_size, N, D]`; scale: float32 `[num_blocks, block_size, N, 1]`.
    Where a value is not finite the scale is NaN, so that what comes out is not finite either.
    """

    data: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    def write(self, new_TND: Tensor, slots_T: Tensor) -> None:
        wide = new_TND.float()
        scale = wide.abs().amax(-1, keepdim=True).div_(127)
        scale.masked_fill_(scale.isinf(), torch.nan)
        # a scale of zero would make 0 / 0
        scale.clamp_min_(torch.finfo(torch.float32).tiny)
        write_kv(self.data, (wide / scale).round_().to(torch.int8), slots_T)
        write_kv(self.scale, scale, slots_T)

    def gather(self, block_tables: Tensor, dtype: torch.dtype) -> Tensor:
        data = self.data[block_tables].to(torch.float32)
        return data.mul_(self.scale[block_tables]).to(dtype)


def write_kv(cache: Tensor | Int8Cache, new_TND: Tensor, slots_T: Tensor) -> None:
    """`cache[slot // block_size, slot % block_size] = new`, in place; rounded for an `Int8Cache`.

    cache `[num_blocks, block_size, N, D]`; new_TND `[T, N, D]`; slots_T int64 `[T]`.
    """
    if isinstance(cache, Int8Cache):
        cache.write(new_TND, slots_T)
    else:
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slots_T, new_TND)


def _gather(cache: Tensor | Int8Cache, block_tables: Tensor, dtype: torch.dtype) -> Tensor:
    """The blocks of tables `[B, num_blocks]`: `[B, num_blocks * block_size, N, D]` of `dtype`."""
    if isinstance(cache, Int8Cache):
        return cache.gather(block_tables, dtype).flatten(1, 2)
    blocks = cache.index_select(0, block_tables.flatten())  # faster than cache[block_tables]
    return blocks.view(len(block_tables), -1, *cache.shape[2:])


def paged_attention(
    q_TND: Tensor,
    k_cache: Tensor | Int8Cache,
    v_cache: Tensor | Int8Cache,
    buckets: Sequence[AttentionBucket],
    scale: float,
    window: int | None = None,
) -> Tensor:
    """As the module's equation says. q_TND `[T, N G, D]`; caches `[num_blocks, block_size, N, D]`;
    window: one of those that the buckets were created for; returns `[T, N G, D]`."""
    out_TND = torch.empty_like(q_TND)
    num_kv_heads, head_dim = k_cache.shape[2:]
    groups = q_TND.shape[1] // num_kv_heads
    for bucket in buckets:
        num_reqs = bucket.block_tables.shape[0]
        k, v = (
            _gather(cache, bucket.block_tables, q_TND.dtype).transpose(1, 2)
            for cache in (k_cache, v_cache)
        )
        is_whole = bucket.is_in_order and len(bucket.rows) == len(q_TND)
        q = q_TND if is_whole else q_TND.index_select(0, bucket.rows)
        q = q.reshape(num_reqs, -1, num_kv_heads, groups, head_dim)
        # the query heads of a KV head become query rows, so keys are never repeated
        q_BNQD = q.permute(0, 2, 3, 1, 4).flatten(2, 3)
        bias = bucket.bias(window, groups, q_TND.dtype)
        o = functional.scaled_dot_product_attention(q_BNQD, k, v, attn_mask=bias, scale=scale)
        o = o.view(num_reqs, num_kv_heads, groups, -1, head_dim).permute(0, 3, 1, 2, 4)
        o = o.reshape(-1, *q_TND.shape[1:])
        if is_whole:
            return o
        out_TND.index_copy_(0, bucket.valid_rows, o.index_select(0, bucket.valid))
    return out_TND
