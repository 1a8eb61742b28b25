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
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.attention_kernel import attention_kernel, merge_kernel
from weft_kernels.cuda.attention_plan import AttentionMetadata, AttentionWork, get_tiling
from weft_kernels.cuda.configs import get_config, listed_configs
from weft_kernels.cuda.kv_write import Cache, split_cache


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
        attention_kernel[(metadata.num_kv_heads, len(work.items))](
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
            merge_kernel[(q_TND.shape[1], len(work.merges))](
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
                kernel=merge_kernel,
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
        kernel=attention_kernel,
        signature={**pointers, **strides, "scale_log2": "fp32", "window": "i32"},
        constants=constants,
        divisible_by_16=[*pointers, *strides],
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
        needs_mma=True,
    )
