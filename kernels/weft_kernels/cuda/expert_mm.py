"""The experts of few tokens (decode): two GEMMs over tiles of up to 16 pairs of one expert.

    act[p] = silu(g) * u,  [g | u] = expand(x[t] Wgu[e], h[p])          gate_up
    y[t]   = sum_k w[t, k] * expand(act[p(t, k)] Wd[e], h[p(t, k)])     down

`expand` adds the adapter's part (`expert_lora_expand.py`). An expert's weights come from memory
once for all its pairs; each stage is one launch. The weighted sum is part of the second: a program
leaves its rows in float32, and the one that finds itself the last of a token's to finish adds all
of them up, k by k. Who is last depends on the device's timing, what it adds and in which order does
not.

Legend: T tokens, K experts per token, P = T K pairs in sorted order, E experts, H hidden, F expert
width, L tiles, N column blocks of the second GEMM. Weights `[E, H, 2 F]` (gate first) and
`[E, F, H]`, of x's dtype; sums float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, listed_configs
from weft_kernels.cuda.expert_lora import (
    RANK_STEP,
    WITHOUT_VECTORS,
    ExpertLora,
    create_variant,
    expand_arguments,
)
from weft_kernels.cuda.expert_lora_expand import expand_tile
from weft_kernels.cuda.pages import PAGE_ROWS
from weft_kernels.cuda.pair_groups import FEW_PAIRS, TILE_ROWS, PairGroups


def gate_up(
    x_TH: Tensor,
    w_EHF: Tensor,
    groups: PairGroups,
    lora: ExpertLora | None,
    h_SPR: Tensor | None,
    act_PF: Tensor,
    config: Config,
) -> None:
    """Fills `act_PF`, rows by place."""
    num_in, width = w_EHF.shape[1], w_EHF.shape[2] // 2
    grid = (triton.cdiv(width, config["BLOCK_N"]), groups.tiles_L4.shape[0])
    table = None if lora is None else lora.table
    _gate_up_kernel[grid](
        x_TH, w_EHF, act_PF, groups.tiles_L4, groups.pair_P, groups.slot_P, h_SPR,
        *expand_arguments(table),
        groups.pair_P.shape[0], num_in, width, x_TH.stride(0),
        0 if table is None else table.num_slots, 0 if table is None else table.max_rank,
        0 if lora is None else lora.gate_site, 0 if lora is None else lora.up_site,
        TOP_K=groups.top_k, BLOCK_M=TILE_ROWS, BLOCK_N=config["BLOCK_N"],
        BLOCK_K=config["BLOCK_K"], FEW_PAIRS=FEW_PAIRS, PAGE_ROWS=PAGE_ROWS, RANK_STEP=RANK_STEP,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip


@triton.jit
def _gate_up_kernel(
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    act_ptr: tl.tensor,
    tiles_ptr: tl.tensor,
    pair_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    h_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    b_offsets_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    num_pairs: tl.tensor,
    num_in: tl.tensor,
    width: tl.tensor,
    x_stride: tl.tensor,
    num_slots: tl.tensor,
    max_rank: tl.tensor,
    gate_site: tl.tensor,
    up_site: tl.tensor,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FEW_PAIRS: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    RANK_STEP: tl.constexpr,
) -> None:
    """A program takes BLOCK_N columns, gate's and up's, of a tile."""
    tile_ptr = tiles_ptr + tl.program_id(1) * 4
    expert = tl.load(tile_ptr)
    if expert < 0:
        return
    first, end = tl.load(tile_ptr + 1), tl.load(tile_ptr + 2)
    place_M = first + tl.arange(0, BLOCK_M)
    is_row_M = place_M < end
    token_M = tl.load(pair_ptr + place_M, mask=is_row_M, other=0) // TOP_K
    column_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = column_N < width
    x_ptr_M = x_ptr + token_M.to(tl.int64) * x_stride
    w_ptr += expert.to(tl.int64) * num_in * (2 * width)
    gate_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, num_in, BLOCK_K):
        in_K = start + tl.arange(0, BLOCK_K)
        x_MK = tl.load(
            x_ptr_M[:, None] + in_K[None, :],
            mask=is_row_M[:, None] & (in_K < num_in)[None, :], other=0.0,
        )  # fmt: skip
        w_ptrs = w_ptr + (in_K * (2 * width))[:, None] + column_N[None, :]
        mask = (in_K < num_in)[:, None] & is_column_N[None, :]
        w_KN = tl.load(w_ptrs, mask=mask, other=0.0)
        gate_MN = tl.dot(x_MK, w_KN, gate_MN, input_precision="ieee")
        w_KN = tl.load(w_ptrs + width, mask=mask, other=0.0)
        up_MN = tl.dot(x_MK, w_KN, up_MN, input_precision="ieee")
    if h_ptr is not None:
        gate_MN = expand_tile(
            gate_MN, h_ptr, slot_ptr, first, end, gate_site + expert, memory_ptr, true_ranks_ptr,
            first_pages_ptr, b_offsets_ptr, row_scales_ptr, biases_ptr, column_N, width, num_slots,
            max_rank, BLOCK_M, BLOCK_N, FEW_PAIRS, PAGE_ROWS, RANK_STEP,
        )  # fmt: skip
        h_ptr += num_pairs.to(tl.int64) * max_rank
        up_MN = expand_tile(
            up_MN, h_ptr, slot_ptr, first, end, up_site + expert, memory_ptr, true_ranks_ptr,
            first_pages_ptr, b_offsets_ptr, row_scales_ptr, biases_ptr, column_N, width, num_slots,
            max_rank, BLOCK_M, BLOCK_N, FEW_PAIRS, PAGE_ROWS, RANK_STEP,
        )  # fmt: skip
    act_MN = gate_MN / (1.0 + tl.exp(-gate_MN)) * up_MN
    act_ptrs = act_ptr + place_M[:, None].to(tl.int64) * width + column_N[None, :]
    act_MN = act_MN.to(act_ptr.dtype.element_ty)
    tl.store(act_ptrs, act_MN, mask=is_row_M[:, None] & is_column_N[None, :])


def down(
    act_PF: Tensor,
    w_EFH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    groups: PairGroups,
    lora: ExpertLora | None,
    h_SPR: Tensor | None,
    planes_PH: Tensor,
    arrived_TN: Tensor,
    y_TH: Tensor,
    config: Config,
) -> None:
    """Fills `y_TH`. planes_PH: float32 `[P, H]`, room for each pair's part; arrived_TN: zeros."""
    num_tokens, top_k = experts_TK.shape
    num_experts, width, hidden = w_EFH.shape
    num_tiles = groups.tiles_L4.shape[0]
    assert arrived_TN.shape == (num_tokens, triton.cdiv(hidden, config["BLOCK_N"]))
    grid = (arrived_TN.shape[1], num_tiles + triton.cdiv(num_tokens, TILE_ROWS))
    table = None if lora is None else lora.table
    _down_kernel[grid](
        act_PF, w_EFH, weights_TK, experts_TK, planes_PH, arrived_TN, y_TH,
        groups.tiles_L4, groups.pair_P, groups.slot_P, h_SPR,
        *expand_arguments(table),
        num_tokens, num_tiles, num_experts, width, hidden, y_TH.stride(0),
        0 if table is None else table.num_slots, 0 if table is None else table.max_rank,
        0 if lora is None else lora.down_site,
        TOP_K=top_k, BLOCK_TOP_K=triton.next_power_of_2(top_k), BLOCK_M=TILE_ROWS,
        BLOCK_N=config["BLOCK_N"], BLOCK_K=config["BLOCK_K"],
        FEW_PAIRS=FEW_PAIRS, PAGE_ROWS=PAGE_ROWS, RANK_STEP=RANK_STEP,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip


@triton.jit
def _num_live(
    experts_ptr: tl.tensor,
    token_M: tl.tensor,
    is_row_M: tl.tensor,
    num_experts: tl.tensor,
    TOP_K: tl.constexpr,
    BLOCK_TOP_K: tl.constexpr,
) -> tl.tensor:
    """How many of each token's pairs have an expert that runs."""
    k_K = tl.arange(0, BLOCK_TOP_K)
    expert_MK = tl.load(
        experts_ptr + (token_M * TOP_K)[:, None] + k_K[None, :],
        mask=is_row_M[:, None] & (k_K < TOP_K)[None, :], other=num_experts,
    )  # fmt: skip
    return tl.sum((expert_MK < num_experts).to(tl.int32), axis=1)


@triton.jit
def _down_kernel(
    act_ptr: tl.tensor,
    w_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    experts_ptr: tl.tensor,
    planes_ptr: tl.tensor,
    arrived_ptr: tl.tensor,
    y_ptr: tl.tensor,
    tiles_ptr: tl.tensor,
    pair_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    h_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    b_offsets_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    num_tokens: tl.tensor,
    num_tiles: tl.tensor,
    num_experts: tl.tensor,
    width: tl.tensor,
    hidden: tl.tensor,
    y_stride: tl.tensor,
    num_slots: tl.tensor,
    max_rank: tl.tensor,
    down_site: tl.tensor,
    TOP_K: tl.constexpr,
    BLOCK_TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FEW_PAIRS: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    RANK_STEP: tl.constexpr,
) -> None:
    """A program takes BLOCK_N columns of a tile; those behind the last tile write the zeros of
    tokens that have no expert at all."""
    column_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column_N = column_N < hidden
    tile = tl.program_id(1)
    if tile >= num_tiles:
        token_M = (tile - num_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
        is_row_M = token_M < num_tokens
        num_live_M = _num_live(experts_ptr, token_M, is_row_M, num_experts, TOP_K, BLOCK_TOP_K)
        y_ptrs = y_ptr + token_M[:, None].to(tl.int64) * y_stride + column_N[None, :]
        nothing_MN = tl.zeros([BLOCK_M, BLOCK_N], y_ptr.dtype.element_ty)
        is_empty_M = is_row_M & (num_live_M == 0)
        tl.store(y_ptrs, nothing_MN, mask=is_empty_M[:, None] & is_column_N[None, :])
        return
    tile_ptr = tiles_ptr + tile * 4
    expert = tl.load(tile_ptr)
    if expert < 0:
        return
    first, end = tl.load(tile_ptr + 1), tl.load(tile_ptr + 2)
    place_M = first + tl.arange(0, BLOCK_M)
    is_row_M = place_M < end
    act_ptr_M = act_ptr + place_M.to(tl.int64) * width
    w_ptr += expert.to(tl.int64) * width * hidden
    y_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, width, BLOCK_K):
        in_K = start + tl.arange(0, BLOCK_K)
        act_MK = tl.load(
            act_ptr_M[:, None] + in_K[None, :],
            mask=is_row_M[:, None] & (in_K < width)[None, :], other=0.0,
        )  # fmt: skip
        w_KN = tl.load(
            w_ptr + (in_K * hidden)[:, None] + column_N[None, :],
            mask=(in_K < width)[:, None] & is_column_N[None, :], other=0.0,
        )  # fmt: skip
        y_MN = tl.dot(act_MK, w_KN, y_MN, input_precision="ieee")
    if h_ptr is not None:
        y_MN = expand_tile(
            y_MN, h_ptr, slot_ptr, first, end, down_site + expert, memory_ptr, true_ranks_ptr,
            first_pages_ptr, b_offsets_ptr, row_scales_ptr, biases_ptr, column_N, hidden,
            num_slots, max_rank, BLOCK_M, BLOCK_N, FEW_PAIRS, PAGE_ROWS, RANK_STEP,
        )  # fmt: skip
    pair_M = tl.load(pair_ptr + place_M, mask=is_row_M, other=0)
    weight_M = tl.load(weights_ptr + pair_M, mask=is_row_M, other=0.0)
    plane_ptrs = planes_ptr + pair_M[:, None].to(tl.int64) * hidden + column_N[None, :]
    tl.store(plane_ptrs, y_MN * weight_M[:, None], mask=is_row_M[:, None] & is_column_N[None, :])
    # all threads' rows are written before one of them counts the program in
    tl.debug_barrier()
    token_M = pair_M // TOP_K
    num_live_M = _num_live(experts_ptr, token_M, is_row_M, num_experts, TOP_K, BLOCK_TOP_K)
    # a token has an expert once, so a program counts it once
    counter_ptrs = arrived_ptr + token_M * tl.num_programs(0) + tl.program_id(0)
    num_before_M = tl.atomic_add(counter_ptrs, 1, mask=is_row_M, sem="acq_rel", scope="gpu")
    is_last_M = is_row_M & (num_before_M + 1 == num_live_M)
    if tl.max(is_last_M.to(tl.int32), axis=0) > 0:
        total_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in tl.static_range(TOP_K):
            pair_M = token_M * TOP_K + k
            expert_M = tl.load(experts_ptr + pair_M, mask=is_last_M, other=num_experts)
            # from the second-level cache, where other programs' rows are
            total_MN += tl.load(
                planes_ptr + pair_M[:, None].to(tl.int64) * hidden + column_N[None, :],
                mask=(expert_M < num_experts)[:, None] & is_column_N[None, :], other=0.0,
                cache_modifier=".cg",
            )  # fmt: skip
        y_ptrs = y_ptr + token_M[:, None].to(tl.int64) * y_stride + column_N[None, :]
        total_MN = total_MN.to(y_ptr.dtype.element_ty)
        tl.store(y_ptrs, total_MN, mask=is_last_M[:, None] & is_column_N[None, :])


# what a kernel is given: nothing, adapters, or adapters with row scales and biases
_NO_LORA: dict[str, None] = dict.fromkeys(
    ["h_ptr", "memory_ptr", "true_ranks_ptr", "first_pages_ptr", "b_offsets_ptr", *WITHOUT_VECTORS]
)
_FORMS: dict[str, dict[str, None]] = {"base": _NO_LORA, "lora": WITHOUT_VECTORS, "dora": {}}


def aot_variants() -> list[AotVariant]:
    """Every configuration, without adapters, with them, and with their row scales and biases."""
    variants = []
    for operator, kernel in (("moe_gate_up", _gate_up_kernel), ("moe_down", _down_kernel)):
        for shape, config in listed_configs(operator):
            at = f"p{shape['pairs']}-h{shape['hidden']}-f{shape['width']}"
            top_k = 8 if shape["width"] == 768 else 2
            for form, absent in _FORMS.items():
                constants = {"TOP_K": top_k, "BLOCK_TOP_K": top_k, "BLOCK_M": TILE_ROWS, **absent}
                name = f"{operator}/{form}-{at}"
                variants.append(create_variant(name, kernel, config, constants))
    return variants
