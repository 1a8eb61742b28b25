"""The device code of `attention.py`: one kernel over the keys of an item, and one that adds up the
items of a tile that was split.

Legend: M rows (query, query head) of a tile, L keys of a step, N KV heads, G query heads per KV
head, D head dim, S splits of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _attend(
    acc_MD: tl.tensor, sum_M: tl.tensor, max_M: tl.tensor, q_MD: tl.tensor, position_M: tl.tensor,
    k_cache: tl.tensor, v_cache: tl.tensor, k_scale: tl.tensor, v_scale: tl.tensor,
    table: tl.tensor, first: tl.tensor, stop: tl.tensor,
    stride_block: tl.tensor, stride_token: tl.tensor, num_heads: tl.tensor, head: tl.tensor,
    scale_log2: tl.tensor, window: tl.tensor,
    IS_MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, IS_QUANTIZED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Go on with an online softmax over keys first .. stop - 1; all rows see all of them, in whole
    steps, unless IS_MASKED."""
    offs_D = tl.arange(0, BLOCK_D)
    for key in tl.range(first, stop, BLOCK_L):
        keys_L = key + tl.arange(0, BLOCK_L)
        is_key_L = keys_L < stop if IS_MASKED else keys_L >= 0
        if IS_MASKED:
            block_L = tl.load(table + keys_L // BLOCK_SIZE, mask=is_key_L, other=0).to(tl.int64)
        else:
            block_L = tl.load(table + keys_L // BLOCK_SIZE).to(tl.int64)
        place_L = keys_L % BLOCK_SIZE
        offs_LD = (block_L * stride_block + place_L * stride_token)[:, None] + offs_D[None, :]
        if IS_MASKED or D != BLOCK_D:
            is_live_LD = is_key_L[:, None] & (offs_D < D)[None, :]
            k_LD = tl.load(k_cache + offs_LD, mask=is_live_LD, other=0.0)
        else:
            k_LD = tl.load(k_cache + offs_LD)
        s_ML = tl.dot(q_MD, tl.trans(k_LD.to(q_MD.dtype)), input_precision="ieee") * scale_log2
        if IS_QUANTIZED:
            scale_L = (block_L * BLOCK_SIZE + place_L) * num_heads + head
            k_scale_L = tl.load(k_scale + scale_L, mask=is_key_L, other=0.0)
            s_ML = s_ML * k_scale_L[None, :]
        if IS_MASKED:
            is_seen_ML = (keys_L[None, :] <= position_M[:, None]) & is_key_L[None, :]
            if HAS_WINDOW:
                is_seen_ML = is_seen_ML & (keys_L[None, :] > position_M[:, None] - window)
            s_ML = tl.where(is_seen_ML, s_ML, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(s_ML, 1))
        # a row that has seen nothing yet would make -inf - -inf
        base_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)
        p_ML = tl.exp2(s_ML - base_M[:, None])
        kept_M = tl.exp2(max_M - base_M)
        sum_M = sum_M * kept_M + tl.sum(p_ML, 1)
        max_M = new_max_M
        if IS_MASKED or D != BLOCK_D:
            v_LD = tl.load(v_cache + offs_LD, mask=is_live_LD, other=0.0)
        else:
            v_LD = tl.load(v_cache + offs_LD)
        if IS_QUANTIZED:
            v_scale_L = tl.load(v_scale + scale_L, mask=is_key_L, other=0.0)
            p_ML = p_ML * v_scale_L[None, :]
        p_ML = p_ML.to(q_MD.dtype)
        acc_MD = tl.dot(p_ML, v_LD.to(q_MD.dtype), acc_MD * kept_M[:, None], input_precision="ieee")
    return acc_MD, sum_M, max_M


@triton.jit(do_not_specialize=["window"])
def attention_kernel(
    out: tl.tensor, partial_out: tl.tensor, partial_log: tl.tensor, q: tl.tensor,
    k_cache: tl.tensor, v_cache: tl.tensor, k_scale: tl.tensor, v_scale: tl.tensor,
    tables: tl.tensor, items: tl.tensor,
    stride_q: tl.tensor, stride_out: tl.tensor, stride_block: tl.tensor, stride_token: tl.tensor,
    scale_log2: tl.tensor, window: tl.tensor,
    HAS_WINDOW: tl.constexpr, IS_QUANTIZED: tl.constexpr, HAS_INNER: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr,
) -> None:  # fmt: skip
    head, num_heads = tl.program_id(0), tl.num_programs(0)
    item = items + tl.program_id(1) * 8
    num_queries = tl.load(item + 2)
    if num_queries == 0:
        return
    table = tables + tl.load(item)
    row, position = tl.load(item + 1).to(tl.int64), tl.load(item + 3)
    first, stop, partial = tl.load(item + 4), tl.load(item + 5), tl.load(item + 6)

    offs_M, offs_D = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query_M = offs_M // G
    position_M = position + query_M
    is_live_M = query_M < num_queries
    is_live_MD = is_live_M[:, None] & (offs_D < D)[None, :]
    column_MD = (head * G + offs_M % G)[:, None] * D + offs_D[None, :]
    q_MD = tl.load(q + (row + query_M)[:, None] * stride_q + column_MD, mask=is_live_MD, other=0.0)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    sum_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    max_M = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    k_cache += head * D
    v_cache += head * D

    # keys that every row sees need no mask; a tile of few rows is not worth the code
    edge = first
    if HAS_INNER:
        if HAS_WINDOW:
            hidden = tl.maximum(position + num_queries - window - first, 0)
            edge = tl.minimum(first + tl.cdiv(hidden, BLOCK_L) * BLOCK_L, stop)
            acc_MD, sum_M, max_M = _attend(
                acc_MD, sum_M, max_M, q_MD, position_M,
                k_cache, v_cache, k_scale, v_scale, table, first, edge,
                stride_block, stride_token, num_heads, head, scale_log2, window,
                True, True, IS_QUANTIZED, BLOCK_SIZE, D, BLOCK_D, BLOCK_L,
            )  # fmt: skip
        seen = tl.maximum(tl.minimum(position + 1, stop) - edge, 0) // BLOCK_L * BLOCK_L
        acc_MD, sum_M, max_M = _attend(
            acc_MD, sum_M, max_M, q_MD, position_M,
            k_cache, v_cache, k_scale, v_scale, table, edge, edge + seen,
            stride_block, stride_token, num_heads, head, scale_log2, window,
            False, False, IS_QUANTIZED, BLOCK_SIZE, D, BLOCK_D, BLOCK_L,
        )  # fmt: skip
        edge += seen
    acc_MD, sum_M, max_M = _attend(
        acc_MD, sum_M, max_M, q_MD, position_M,
        k_cache, v_cache, k_scale, v_scale, table, edge, stop,
        stride_block, stride_token, num_heads, head, scale_log2, window,
        True, HAS_WINDOW, IS_QUANTIZED, BLOCK_SIZE, D, BLOCK_D, BLOCK_L,
    )  # fmt: skip

    if partial < 0:
        # padding has no keys: zeros. A row of a request divides by what it summed, also by zero
        o_MD = acc_MD / tl.where(first < stop, sum_M, 1.0)[:, None]
        to_MD = (row + query_M)[:, None] * stride_out + column_MD
        tl.store(out + to_MD, o_MD.to(out.dtype.element_ty), mask=is_live_MD)
    else:
        # a split may hold no key that a row sees
        o_MD = acc_MD / tl.where(sum_M == 0.0, 1.0, sum_M)[:, None]
        to_M = (partial.to(tl.int64) * num_heads + head) * BLOCK_M + offs_M
        tl.store(partial_out + to_M[:, None] * D + offs_D[None, :], o_MD, mask=is_live_MD)
        tl.store(partial_log + to_M, max_M + tl.log2(sum_M), mask=is_live_M)


@triton.jit
def merge_kernel(
    out: tl.tensor, partial_out: tl.tensor, partial_log: tl.tensor, merges: tl.tensor,
    stride_out: tl.tensor, num_kv_heads: tl.tensor,
    G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> None:  # fmt: skip
    """`o = sum_s 2^log[s] o[s] / sum_s 2^log[s]` of a tile's queries, for one query head."""
    merge = merges + tl.program_id(1) * 4
    num_splits = tl.load(merge + 1)
    if num_splits == 0:
        return
    partial, row = tl.load(merge).to(tl.int64), tl.load(merge + 2).to(tl.int64)
    num_queries = tl.load(merge + 3)
    query_head = tl.program_id(0)
    offs_D, offs_S = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    for query in tl.range(0, num_queries):
        acc_D = tl.zeros((BLOCK_D,), dtype=tl.float32)
        total, most = 0.0, float("-inf")
        for split in tl.range(0, num_splits, BLOCK_S):
            is_split_S = split + offs_S < num_splits
            at_S = (partial + split + offs_S) * num_kv_heads + query_head // G
            at_S = at_S * BLOCK_M + query * G + query_head % G
            log_S = tl.load(partial_log + at_S, mask=is_split_S, other=float("-inf"))
            is_live_SD = is_split_S[:, None] & (offs_D < D)[None, :]
            o_SD = tl.load(
                partial_out + at_S[:, None] * D + offs_D[None, :], mask=is_live_SD, other=0.0
            )
            new_most = tl.maximum(most, tl.max(log_S, 0))
            base = tl.where(new_most == float("-inf"), 0.0, new_most)
            weight_S = tl.exp2(log_S - base)
            kept = tl.exp2(most - base)
            acc_D = acc_D * kept + tl.sum(o_SD * weight_S[:, None], 0)
            total = total * kept + tl.sum(weight_S, 0)
            most = new_most
        to_D = (row + query) * stride_out + query_head * D + offs_D
        tl.store(out + to_D, (acc_D / total).to(out.dtype.element_ty), mask=offs_D < D)
