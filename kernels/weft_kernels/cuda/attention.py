"""Paged attention of a mixed batch: decoding rows and chunks of prompts, over blocks of a KV cache.

    o[t, h] = sum_j softmax_j(scale * q[t, h] . k[j, h // G]) v[j, h // G],
        position(t) - window < j <= position(t)

over the tokens j of t's own request; a layer without a window sees all before (grouped-query
attention, Ainslie et al. 2023; block tables, Kwon et al. 2023; online softmax, Dao et al. 2022;
splits over keys, Dao et al. 2023). Key j lies in block `tables[j // block_size]` at place
`j % block_size`. Keys outside a tile's windows and beyond the context are never read. Rows of
padding come out as zeros.

One block of the grid takes one item of the plan (`attention_plan.py`) for one KV head: up to
`block_m` (query, query head) rows, padded to the 16 rows of a tensor-core instruction, against
the item's keys, `block_l` at a time. Items of a tile that was split leave `o` and the base-2
logarithm of their softmax's denominator in float32; a second kernel weighs and adds them in the
order of the keys. So a request's bits depend on its own lengths and on how far the step is split,
not on what lies beside it.

Caches of 8 bits (`x[d] = s q[d]` per token and head) are widened to the dtype of q in registers,
which is exact, and `s` multiplies scores and probabilities in float32.

q_TND `[T, N G, D]`, bf16, fp16 or fp32, a row's values side by side; caches `[num_blocks,
block_size, N, D]` of q's dtype, int8 or fp8 with scales; output `[T, N G, D]`.

Legend: T rows, N KV heads, G query heads per KV head, D head dim, M rows of a tile, L keys of a
tile, S splits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.attention_plan import AttentionMetadata, AttentionWork, get_tiling
from weft_kernels.cuda.configs import get_config, listed_configs
from weft_kernels.cuda.kv_write import Cache, split_cache


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
def _attention_kernel(
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
def _merge_kernel(
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


def paged_attention(
    q_TND: Tensor,
    k_cache: Cache,
    v_cache: Cache,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """As the module's equation says; window: one of those that the step was planned for."""
    k_data, k_scale = split_cache(k_cache)
    v_data, v_scale = split_cache(v_cache)
    _check(q_TND, k_data, v_data, metadata, window)
    out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
    for work, has_inner in zip(metadata.work[window], (False, True), strict=True):
        if len(work.items) == 0:
            continue
        partial_out, partial_log = _create_partials(work, k_data)
        head_dim, tiling = k_data.shape[3], work.tiling
        _attention_kernel[(metadata.num_kv_heads, len(work.items))](
            out_TND, partial_out, partial_log, q_TND, k_data, v_data, k_scale, v_scale,
            metadata.tables, work.items,
            q_TND.stride(0), out_TND.stride(0), k_data.stride(0), k_data.stride(1),
            scale * math.log2(math.e), window or 0,
            HAS_WINDOW=window is not None, IS_QUANTIZED=k_scale is not None, HAS_INNER=has_inner,
            BLOCK_SIZE=metadata.block_size, G=metadata.groups, D=head_dim,
            BLOCK_D=_block_d(head_dim), BLOCK_M=tiling.block_m, BLOCK_L=tiling.block_l,
            num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        )  # fmt: skip
        if len(work.merges):
            config = get_config("attention_merge", head_dim=head_dim)
            _merge_kernel[(q_TND.shape[1], len(work.merges))](
                out_TND, partial_out, partial_log, work.merges,
                out_TND.stride(0), metadata.num_kv_heads,
                G=metadata.groups, D=head_dim, BLOCK_D=_block_d(head_dim), BLOCK_M=tiling.block_m,
                BLOCK_S=config["BLOCK_S"],
                num_warps=config["num_warps"], num_stages=config["num_stages"],
            )  # fmt: skip
    return out_TND


def _block_d(head_dim: int) -> int:
    # a tensor-core instruction multiplies 16 columns of q
    return max(16, int(triton.next_power_of_2(head_dim)))


def _create_partials(work: AttentionWork, k_data: Tensor) -> tuple[Tensor, Tensor]:
    shape = (work.num_partials, k_data.shape[2], work.tiling.block_m, k_data.shape[3])
    partial_out = torch.empty(shape, dtype=torch.float32, device=k_data.device)
    return partial_out, torch.empty(shape[:3], dtype=torch.float32, device=k_data.device)


def _check(
    q_TND: Tensor, k_data: Tensor, v_data: Tensor, metadata: AttentionMetadata, window: int | None
) -> None:
    _, block_size, num_kv_heads, head_dim = k_data.shape
    if k_data.shape != v_data.shape or k_data.stride() != v_data.stride():
        raise ValueError("the caches of keys and values differ in shape or layout")
    if k_data.dtype != v_data.dtype or (k_data.dtype.itemsize > 1 and k_data.dtype != q_TND.dtype):
        raise ValueError(
            f"queries of {q_TND.dtype} do not go with caches of {k_data.dtype} and {v_data.dtype}"
        )
    planned = (metadata.block_size, metadata.num_kv_heads)
    if planned != (block_size, num_kv_heads):
        raise ValueError(
            f"the step was planned for blocks of {planned[0]} tokens and {planned[1]} KV heads, "
            f"the caches have {block_size} and {num_kv_heads}"
        )
    if q_TND.shape[1:] != (num_kv_heads * metadata.groups, head_dim):
        raise ValueError(
            f"queries are [T, {num_kv_heads * metadata.groups}, {head_dim}], not "
            f"{tuple(q_TND.shape)}"
        )
    if len(q_TND) and (q_TND.stride(2) != 1 or q_TND.stride(1) != head_dim):
        raise ValueError(f"a row's values lie side by side, not at {q_TND.stride()}")
    if window not in metadata.work:
        raise ValueError(f"the step was not planned for a window of {window}")


def aot_variants() -> list[AotVariant]:
    variants = [
        _attention_variant(form, shape, kv, has_window)
        for form in ("decode", "prefill")
        for shape, _ in listed_configs(f"attention_{form}")
        for kv in (("bf16",) if shape["kv_bytes"] == 2 else ("i8", "fp8e4nv"))
        # fp8 differs from int8 by one conversion
        for has_window in ((False, True) if kv != "fp8e4nv" else (False,))
    ]
    for shape, config in listed_configs("attention_merge"):
        head_dim = shape["head_dim"]
        pointers = {"out": "*bf16", "partial_out": "*fp32", "partial_log": "*fp32"}
        variants.append(
            AotVariant(
                name=f"attention_merge/d{head_dim}",
                kernel=_merge_kernel,
                signature={
                    **pointers,
                    "merges": "*i32",
                    "stride_out": "i32",
                    "num_kv_heads": "i32",
                },
                constants={
                    "G": 4,
                    "D": head_dim,
                    "BLOCK_D": head_dim,
                    "BLOCK_M": 16,
                    "BLOCK_S": config["BLOCK_S"],
                },
                divisible_by_16=[*pointers, "merges", "stride_out"],
                num_warps=config["num_warps"],
                num_stages=config["num_stages"],
            )
        )
    return variants


def _attention_variant(
    form: str, shape: Mapping[str, int], kv: str, has_window: bool
) -> AotVariant:
    tiling, is_quantized = get_tiling(form, **shape), shape["kv_bytes"] == 1
    groups, head_dim = shape["groups"], shape["head_dim"]
    scale = "*fp32" if is_quantized else "constexpr"
    pointers = {"out": "*bf16", "partial_out": "*fp32", "partial_log": "*fp32", "q": "*bf16"}
    pointers |= {"k_cache": f"*{kv}", "v_cache": f"*{kv}", "k_scale": scale, "v_scale": scale}
    pointers |= {"tables": "*i32", "items": "*i32"}
    strides = {n: "i32" for n in ("stride_q", "stride_out", "stride_block", "stride_token")}
    constants: dict[str, Any] = {
        "HAS_WINDOW": has_window,
        "IS_QUANTIZED": is_quantized,
        "HAS_INNER": form == "prefill",
        "BLOCK_SIZE": 16,
        "G": groups,
        "D": head_dim,
        "BLOCK_D": head_dim,
        "BLOCK_M": tiling.block_m,
        "BLOCK_L": tiling.block_l,
    }
    if not is_quantized:
        constants |= {"k_scale": None, "v_scale": None}
    kind = kv + ("-window" if has_window else "")
    return AotVariant(
        name=f"attention_{form}/{kind}-d{head_dim}-g{groups}",
        kernel=_attention_kernel,
        signature={**pointers, **strides, "scale_log2": "fp32", "window": "i32"},
        constants=constants,
        divisible_by_16=[*pointers, *strides],
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        needs_mma=True,
    )
