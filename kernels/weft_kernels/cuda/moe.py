"""Mixture of experts on the device: routing, the experts' GEMMs, and expert adapters on top.

    y[t] = sum_k w[t, k] * down_e(silu(gate_e(x[t])) * up_e(x[t])),   e = top-k experts of x[t]

with `w, e` of `routing.py`, pairs in the order of `pair_groups.py`, and each projection's adapter
(`expert_lora.py`) added before the activation or before the weight. A shared expert is the
caller's: a dense MLP beside this.

Up to `MAX_FEW_TOKENS` tokens take the decode kernels (`expert_mm.py`): 5 launches after the
router's GEMM with adapters, 4 without. More take `torch.nn.functional.grouped_mm` over gathered
rows, with tiles of 64 for the adapters. Which it is depends on T alone, so that a captured graph
always replays its own.

Legend: T tokens, K experts per token, E experts, P = T K pairs in sorted order, H hidden, F expert
width, R the page table's highest rank. x, y `[T, H]`, bf16, fp16 or fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from weft_kernels import grouped
from weft_kernels.cuda import expert_mm
from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import get_config
from weft_kernels.cuda.expert_lora import MANY_TILE_ROWS, ExpertLora
from weft_kernels.cuda.expert_lora_expand import expand_
from weft_kernels.cuda.expert_lora_shrink import shrink
from weft_kernels.cuda.pair_groups import TILE_ROWS, PairGroups, group_pairs
from weft_kernels.cuda.routing import route
from weft_kernels.cuda.silu_mul import silu_mul
from weft_kernels.moe import ExpertWeights

# from some 16 pairs per expert on, as of 256 tokens on 8 of 128, grouped_mm's large tiles are
# reported to win; not measured here
MAX_FEW_TOKENS = 256
_REDUCE_BLOCK = 1024


def moe(
    x_TH: Tensor,
    weights: ExpertWeights,
    top_k: int,
    renormalize: bool,
    lora: ExpertLora | None = None,
    *,
    num_tokens: Tensor | None = None,
    logits_TE: Tensor | None = None,
    max_few_tokens: int = MAX_FEW_TOKENS,
) -> Tensor:
    """y. The router's columns from the number of experts on are null experts.

    num_tokens: int32 `[1]`; rows from there on are no tokens and come out as zeros. logits_TE: the
    router's, where they are not `x router_HE`.
    """
    _check(x_TH, weights, lora)
    logits_TE = x_TH @ weights.router_HE if logits_TE is None else logits_TE
    if logits_TE.shape != (len(x_TH), weights.router_HE.shape[1]):
        raise ValueError(f"there must be logits of {weights.router_HE.shape[1]} experts a row")
    weights_TK, experts_TK = route(logits_TE, top_k, renormalize, num_tokens)
    if x_TH.shape[0] == 0:
        return torch.empty_like(x_TH)
    if x_TH.shape[0] <= max_few_tokens:
        return _moe_of_few(x_TH, weights, weights_TK, experts_TK, lora)
    return _moe_of_many(x_TH, weights, weights_TK, experts_TK, lora)


def _check(x_TH: Tensor, weights: ExpertWeights, lora: ExpertLora | None) -> None:
    num_experts, hidden, double = weights.gate_up_EHF.shape
    if x_TH.dim() != 2 or x_TH.shape[1] != hidden or x_TH.stride(1) != 1:
        raise ValueError(f"x must be [T, {hidden}] with unit stride, not {tuple(x_TH.shape)}")
    if tuple(weights.down_EFH.shape) != (num_experts, double // 2, hidden) or double % 2:
        raise ValueError("the experts' weights must be [E, H, 2 F] and [E, F, H]")
    if weights.router_HE.shape[0] != hidden or weights.router_HE.shape[1] < num_experts:
        raise ValueError(f"the router must be [{hidden}, {num_experts} or more]")
    for w in (weights.gate_up_EHF, weights.down_EFH):
        if w.dtype != x_TH.dtype or not w.is_contiguous():
            raise ValueError(f"the experts' weights must be contiguous {x_TH.dtype}, as x")
    if lora is not None and lora.slots_T.shape != x_TH.shape[:1]:
        raise ValueError(f"there must be {x_TH.shape[0]} slots, one for each row of x")


def _moe_of_few(
    x_TH: Tensor,
    weights: ExpertWeights,
    weights_TK: Tensor,
    experts_TK: Tensor,
    lora: ExpertLora | None,
) -> Tensor:
    num_experts, width, hidden = weights.down_EFH.shape
    num_pairs = experts_TK.numel()
    shape = {"pairs": num_pairs, "hidden": hidden, "width": width}
    down_config = get_config("moe_down", **shape)
    num_blocks = triton.cdiv(hidden, down_config["BLOCK_N"])
    arrived_TN = torch.empty(len(x_TH), num_blocks, dtype=torch.int32, device=x_TH.device)
    groups = _group(experts_TK, num_experts, lora, TILE_ROWS, arrived_TN)
    h_SPR = None
    if lora is not None:
        h_SPR = shrink(x_TH, groups, lora.table, (lora.gate_site, lora.up_site))
    act_PF = x_TH.new_empty(num_pairs, width)
    expert_mm.gate_up(
        x_TH, weights.gate_up_EHF, groups, lora, h_SPR, act_PF, get_config("moe_gate_up", **shape)
    )
    if lora is not None:
        h_SPR = shrink(act_PF, groups, lora.table, (lora.down_site,), is_by_place=True)
    planes_PH = torch.empty(num_pairs, hidden, dtype=torch.float32, device=x_TH.device)
    y_TH = torch.empty_like(x_TH)
    expert_mm.down(
        act_PF, weights.down_EFH, weights_TK, experts_TK, groups, lora, h_SPR, planes_PH,
        arrived_TN, y_TH, down_config,
    )  # fmt: skip
    return y_TH


def _group(
    experts_TK: Tensor,
    num_experts: int,
    lora: ExpertLora | None,
    tile_rows: int,
    arrived_TN: Tensor | None = None,
) -> PairGroups:
    slots_T, num_slots = (None, 0) if lora is None else (lora.slots_T, lora.table.num_slots)
    return group_pairs(
        experts_TK, num_experts, slots_T, num_slots, tile_rows=tile_rows, arrived=arrived_TN
    )


def _grouped_mm(x_PI: Tensor, w_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """Rows behind the last expert's, those of null pairs, come out undefined."""
    if not hasattr(functional, "grouped_mm"):
        raise RuntimeError(
            f"more than {MAX_FEW_TOKENS} tokens need torch.nn.functional.grouped_mm, "
            f"which torch {torch.__version__} does not have: install 2.10 or later"
        )
    if len(w_EIO) > grouped.MAX_GROUPS_PER_CALL:
        raise ValueError(
            f"torch.nn.functional.grouped_mm takes {grouped.MAX_GROUPS_PER_CALL} experts at most, "
            f"not {len(w_EIO)}"
        )
    return grouped.grouped_mm(x_PI, w_EIO, ends_E)


def _moe_of_many(
    x_TH: Tensor,
    weights: ExpertWeights,
    weights_TK: Tensor,
    experts_TK: Tensor,
    lora: ExpertLora | None,
) -> Tensor:
    groups = _group(experts_TK, len(weights.down_EFH), lora, MANY_TILE_ROWS)
    x_PH = x_TH.index_select(0, groups.pair_P // groups.top_k)
    gate_up_PF = _grouped_mm(x_PH, weights.gate_up_EHF, groups.ends_E)
    if lora is not None:
        _add_(gate_up_PF, x_PH, groups, lora, (lora.gate_site, lora.up_site))
    act_PF = silu_mul(gate_up_PF)
    out_PH = _grouped_mm(act_PF, weights.down_EFH, groups.ends_E)
    if lora is not None:
        _add_(out_PH, act_PF, groups, lora, (lora.down_site,))
    return _reduce(out_PH, weights_TK, experts_TK, groups)


def _add_(
    y_PO: Tensor, x_PI: Tensor, groups: PairGroups, lora: ExpertLora, sites: Sequence[int]
) -> None:
    rows = MANY_TILE_ROWS
    h_SPR = shrink(x_PI, groups, lora.table, sites, is_by_place=True, tile_rows=rows)
    expand_(y_PO, h_SPR, groups, lora.table, sites, tile_rows=rows)


def _reduce(out_PH: Tensor, weights_TK: Tensor, experts_TK: Tensor, groups: PairGroups) -> Tensor:
    """`y[t] = sum_k w[t, k] out[place(t, k)]` over the pairs that have an expert."""
    (num_tokens, top_k), hidden = experts_TK.shape, out_PH.shape[1]
    y_TH = out_PH.new_empty(num_tokens, hidden)
    _reduce_kernel[(num_tokens, triton.cdiv(hidden, _REDUCE_BLOCK))](
        out_PH, weights_TK, experts_TK, groups.place_P, y_TH,
        groups.num_experts, hidden, out_PH.stride(0),
        TOP_K=top_k, BLOCK_H=_REDUCE_BLOCK, num_warps=4, num_stages=1,
    )  # fmt: skip
    return y_TH


@triton.jit
def _reduce_kernel(
    out_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    experts_ptr: tl.tensor,
    place_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_experts: tl.tensor,
    hidden: tl.tensor,
    out_stride: tl.tensor,
    TOP_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """A program takes BLOCK_H columns of a token."""
    t = tl.program_id(0).to(tl.int64)
    column_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_column_H = column_H < hidden
    y_H = tl.zeros([BLOCK_H], tl.float32)
    for k in tl.static_range(TOP_K):
        is_live = tl.load(experts_ptr + t * TOP_K + k) < num_experts
        weight = tl.load(weights_ptr + t * TOP_K + k)
        place = tl.load(place_ptr + t * TOP_K + k).to(tl.int64)
        out_H = tl.load(
            out_ptr + place * out_stride + column_H, mask=is_column_H & is_live, other=0.0
        )
        y_H += tl.where(is_live, weight * out_H.to(tl.float32), 0.0)
    tl.store(y_ptr + t * hidden + column_H, y_H.to(y_ptr.dtype.element_ty), mask=is_column_H)


def aot_variants() -> list[AotVariant]:
    """The weighted sum of many tokens, for Qwen3-30B-A3B's 8 experts and Mixtral's 2."""
    pointers = {
        "out_ptr": "*bf16", "weights_ptr": "*fp32", "experts_ptr": "*i32", "place_ptr": "*i32",
        "y_ptr": "*bf16",
    }  # fmt: skip
    return [
        AotVariant(
            name=f"moe_reduce/k{top_k}",
            kernel=_reduce_kernel,
            signature=pointers | dict.fromkeys(["num_experts", "hidden", "out_stride"], "i32"),
            constants={"TOP_K": top_k, "BLOCK_H": _REDUCE_BLOCK},
            divisible_by_16=[*pointers, "hidden", "out_stride"],
            num_warps=4,
            num_stages=1,
        )
        for top_k in (2, 8)
    ]
