"""Adapters of experts, by (expert, slot) of a token's pair, over pages at true rank.

    h[p] = s A x[p]                      shrink: one launch for the sites that share x (gate, up)
    y[p] = m * (y[p] + B h[p]) + b       expand: after the base's product, before the activation or
                                         the weighted sum

of pair p's adapter at its expert's site, `site = first_site + expert`. PEFT's module per expert and
its fused `target_parameters` come to the same sites: of a fused pair, each expert's slices are a
site, and gate and up have one A and a half of B each. Where both sites' pages name one A, it comes
from memory once and from the cache the second time.

For few tokens the expand is the last part of the base GEMM's own tile (`expert_mm.py`); for many,
`expand_` adds to the base's finished product. A pair whose slot is -1, or whose adapter has no rank
at the site, reads nothing. Runs of a slot from `FEW_PAIRS` on use tensor cores, shorter ones a GEMV
per pair. No sum depends on the order of programs.

Legend: P pairs in sorted order (their *places*), S sites that share x, R the table's highest rank,
I in, O out, L runs. x bf16, fp16 or fp32, of the pool's dtype; h float32 `[S, P, R]`: columns from
an adapter's rank on, and rows without an adapter, hold anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, get_config, listed_configs
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.cuda.pair_groups import FEW_PAIRS, TILE_ROWS, PairGroups

# rank rows of one tensor-core step: two pages
RANK_STEP = 16
# rows of a tile where there are more pairs than 2048, 256 tokens on 8 experts
MANY_TILE_ROWS = 64
MAX_FEW_PAIRS = 2048


@dataclass(frozen=True, slots=True)
class ExpertLora:
    """A layer's expert adapters: the first expert's site of each projection, and whose rows they
    are: slots_T int32 `[T]`, -1 for none."""

    table: PageTable
    gate_site: int
    up_site: int
    down_site: int
    slots_T: Tensor


def shrink(
    x: Tensor,
    groups: PairGroups,
    table: PageTable,
    first_sites: Sequence[int],
    *,
    is_by_place: bool = False,
    h_SPR: Tensor | None = None,
    tile_rows: int = TILE_ROWS,
    config: Config | None = None,
) -> Tensor:
    """h, in `h_SPR` where given. x: `[T, I]` by token, or `[P, I]` by place."""
    _check(x, table, groups)
    num_pairs, num_in = groups.pair_P.shape[0], x.shape[1]
    if not 1 <= len(first_sites) <= 2:
        raise ValueError("one or two sites share an input")
    for site in first_sites:
        if not 0 <= site <= table.num_sites - groups.num_experts:
            raise ValueError(f"the table has no {groups.num_experts} sites from {site} on")
    if h_SPR is None:
        size = (len(first_sites), num_pairs, table.max_rank)
        h_SPR = torch.empty(size, dtype=torch.float32, device=x.device)
    if config is None:
        config = get_config("expert_lora_shrink", pairs=num_pairs, num_in=num_in)
    assert groups.runs_L4 is not None
    if num_pairs:
        grid = (groups.runs_L4.shape[0], config["SPLIT"], len(first_sites))
        _shrink_kernel[grid](
            x, h_SPR, groups.runs_L4, groups.pair_P, table.memory, table.true_ranks,
            table.first_pages, table.a_offsets, table.scales,
            num_pairs, num_in, x.stride(0), table.num_slots, table.max_rank,
            first_sites[0], first_sites[-1],
            TOP_K=groups.top_k, IS_BY_PLACE=is_by_place, SPLIT=config["SPLIT"],
            BLOCK_M=tile_rows, BLOCK_I=config["BLOCK_I"], BLOCK_I_MMA=config["BLOCK_I_MMA"],
            FEW_PAIRS=FEW_PAIRS, PAGE_ROWS=PAGE_ROWS, RANK_STEP=RANK_STEP,
            num_warps=config["num_warps"], num_stages=config["num_stages"],
        )  # fmt: skip
    return h_SPR


def _check(x: Tensor, table: PageTable, groups: PairGroups) -> None:
    if x.dim() != 2 or x.stride(1) != 1 or x.dtype != table.memory.dtype:
        raise ValueError(
            f"the rows must be a matrix of {table.memory.dtype}, as the pool, with unit stride, "
            f"not {x.dtype} {tuple(x.shape)}"
        )
    if groups.runs_L4 is None:
        raise ValueError("the pairs were grouped without slots")


@triton.jit
def _shrink_kernel(
    x_ptr: tl.tensor,
    h_ptr: tl.tensor,
    runs_ptr: tl.tensor,
    pair_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    a_offsets_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    num_pairs: tl.tensor,
    num_in: tl.tensor,
    x_stride: tl.tensor,
    num_slots: tl.tensor,
    max_rank: tl.tensor,
    first_site: tl.tensor,
    second_site: tl.tensor,
    TOP_K: tl.constexpr,
    IS_BY_PLACE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_I_MMA: tl.constexpr,
    FEW_PAIRS: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    RANK_STEP: tl.constexpr,
) -> None:
    """A program takes a run at a site, and every SPLIT-th page of it."""
    run_ptr = runs_ptr + tl.program_id(0) * 4
    expert = tl.load(run_ptr)
    if expert < 0:
        return
    first, end, slot = tl.load(run_ptr + 1), tl.load(run_ptr + 2), tl.load(run_ptr + 3)
    site = tl.where(tl.program_id(2) == 0, first_site, second_site) + expert
    at = site.to(tl.int64) * num_slots + slot
    rank = tl.load(true_ranks_ptr + at)
    split = tl.program_id(1)
    if split * PAGE_ROWS >= rank:
        return
    first_page = tl.load(first_pages_ptr + at)
    scale = tl.load(scales_ptr + at)
    h_ptr += tl.program_id(2).to(tl.int64) * num_pairs * max_rank
    if end - first < FEW_PAIRS:
        row_R = tl.arange(0, PAGE_ROWS)
        for place in range(first, end):
            row = place if IS_BY_PLACE else tl.load(pair_ptr + place) // TOP_K
            x_row_ptr = x_ptr + tl.cast(row, tl.int64) * x_stride
            for page in range(split, (rank + PAGE_ROWS - 1) // PAGE_ROWS, SPLIT):
                a_at = tl.multiple_of(tl.load(a_offsets_ptr + first_page + page), 8)
                rank_R = page * PAGE_ROWS + row_R
                sum_RI = tl.zeros([PAGE_ROWS, BLOCK_I], tl.float32)
                for start in range(0, num_in, BLOCK_I):
                    in_I = start + tl.arange(0, BLOCK_I)
                    is_in_I = in_I < num_in
                    x_I = tl.load(x_row_ptr + in_I, mask=is_in_I, other=0.0).to(tl.float32)
                    a_ptrs = memory_ptr + a_at + (row_R * num_in)[:, None] + in_I[None, :]
                    a_RI = tl.load(
                        a_ptrs, mask=(rank_R < rank)[:, None] & is_in_I[None, :], other=0.0
                    )
                    sum_RI += a_RI.to(tl.float32) * x_I[None, :]
                h_R = tl.sum(sum_RI, axis=1) * scale
                place_ptr = h_ptr + tl.cast(place, tl.int64) * max_rank
                tl.store(place_ptr + rank_R, h_R, mask=rank_R < rank)
    else:
        place_M = first + tl.arange(0, BLOCK_M)
        is_row_M = place_M < end
        if IS_BY_PLACE:
            row_M = place_M
        else:
            row_M = tl.load(pair_ptr + place_M, mask=is_row_M, other=0) // TOP_K
        x_ptr_M = x_ptr + row_M.to(tl.int64) * x_stride
        for start_rank in range(split * RANK_STEP, rank, SPLIT * RANK_STEP):
            rank_R = start_rank + tl.arange(0, RANK_STEP)
            a_at_R = tl.load(
                a_offsets_ptr + first_page + rank_R // PAGE_ROWS, mask=rank_R < rank, other=0
            )
            a_at_R = tl.multiple_of(a_at_R, 8) + (rank_R % PAGE_ROWS) * num_in
            h_MR = tl.zeros([BLOCK_M, RANK_STEP], tl.float32)
            for start in range(0, num_in, BLOCK_I_MMA):
                in_I = start + tl.arange(0, BLOCK_I_MMA)
                is_in_I = in_I < num_in
                x_MI = tl.load(
                    x_ptr_M[:, None] + in_I[None, :],
                    mask=is_row_M[:, None] & is_in_I[None, :], other=0.0,
                )  # fmt: skip
                a_RI = tl.load(
                    memory_ptr + a_at_R[:, None] + in_I[None, :],
                    mask=(rank_R < rank)[:, None] & is_in_I[None, :], other=0.0,
                )  # fmt: skip
                h_MR = tl.dot(x_MI, tl.trans(a_RI), h_MR, input_precision="ieee")
            h_ptrs = h_ptr + place_M[:, None].to(tl.int64) * max_rank + rank_R[None, :]
            tl.store(h_ptrs, h_MR * scale, mask=is_row_M[:, None] & (rank_R < rank)[None, :])


@triton.jit
def expand_run(
    y_MO: tl.tensor,
    h_ptr: tl.tensor,
    place_M: tl.tensor,
    is_run_M: tl.tensor,
    rank: tl.tensor,
    first_page: tl.tensor,
    memory_ptr: tl.tensor,
    b_offsets_ptr: tl.tensor,
    out_O: tl.tensor,
    num_out: tl.tensor,
    max_rank: tl.tensor,
    PAGE_ROWS: tl.constexpr,
    RANK_STEP: tl.constexpr,
) -> tl.tensor:
    """`y[p] + B h[p]` of the places of one (expert, slot), on tensor cores."""
    for start in tl.range(0, rank, RANK_STEP, num_stages=1):
        rank_R = start + tl.arange(0, RANK_STEP)
        is_rank_R = rank_R < rank
        b_at_R = tl.load(b_offsets_ptr + first_page + rank_R // PAGE_ROWS, mask=is_rank_R, other=0)
        b_at_R = tl.multiple_of(b_at_R, 8) + (rank_R % PAGE_ROWS) * num_out
        b_RO = tl.load(
            memory_ptr + b_at_R[:, None] + out_O[None, :],
            mask=is_rank_R[:, None] & (out_O < num_out)[None, :], other=0.0,
        )  # fmt: skip
        h_MR = tl.load(
            h_ptr + place_M[:, None].to(tl.int64) * max_rank + rank_R[None, :],
            mask=is_run_M[:, None] & is_rank_R[None, :], other=0.0,
        )  # fmt: skip
        y_MO = tl.dot(h_MR.to(b_RO.dtype), b_RO, y_MO, input_precision="ieee")
    return y_MO


@triton.jit
def apply_vectors(
    y_MO: tl.tensor,
    at_M: tl.tensor,
    has_slot_M: tl.tensor,
    memory_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    out_O: tl.tensor,
    num_out: tl.tensor,
) -> tl.tensor:
    """`m * y + b` where an adapter has them; `at_M` is (site, slot)'s place in the table."""
    if row_scales_ptr is not None:
        m_at_M = tl.load(row_scales_ptr + at_M, mask=has_slot_M, other=-1)
        mask = (m_at_M >= 0)[:, None] & (out_O < num_out)[None, :]
        m_MO = tl.load(memory_ptr + m_at_M[:, None] + out_O[None, :], mask=mask, other=1.0)
        y_MO = y_MO * m_MO.to(tl.float32)
    if biases_ptr is not None:
        b_at_M = tl.load(biases_ptr + at_M, mask=has_slot_M, other=-1)
        mask = (b_at_M >= 0)[:, None] & (out_O < num_out)[None, :]
        b_MO = tl.load(memory_ptr + b_at_M[:, None] + out_O[None, :], mask=mask, other=0.0)
        y_MO = y_MO + b_MO.to(tl.float32)
    return y_MO


@triton.jit
def expand_tile(
    y_MO: tl.tensor,
    h_ptr: tl.tensor,
    slot_ptr: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    site: tl.tensor,
    memory_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    b_offsets_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    out_O: tl.tensor,
    num_out: tl.tensor,
    num_slots: tl.tensor,
    max_rank: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    FEW_PAIRS: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    RANK_STEP: tl.constexpr,
) -> tl.tensor:
    """`m * (y[p] + B h[p]) + b` for the places first .. end - 1 of one expert, which are sorted by
    slot, those without one first."""
    place_M = first + tl.arange(0, BLOCK_M)
    is_row_M = place_M < end
    slot_M = tl.load(slot_ptr + place_M, mask=is_row_M, other=-1)
    before_M = tl.load(slot_ptr + place_M - 1, mask=is_row_M & (place_M > first), other=-1)
    at_M = site.to(tl.int64) * num_slots + slot_M
    rank_M = tl.load(true_ranks_ptr + at_M, mask=slot_M >= 0, other=0)
    first_page_M = tl.load(first_pages_ptr + at_M, mask=slot_M >= 0, other=0)
    num_adapted = tl.sum((rank_M > 0).to(tl.int32), axis=0)
    num_runs = tl.sum(((rank_M > 0) & (slot_M != before_M)).to(tl.int32), axis=0)
    if num_adapted > 0:
        if num_adapted >= FEW_PAIRS * num_runs:
            place = tl.min(tl.where(rank_M > 0, place_M, end), axis=0)
            while place < end:
                slot = tl.load(slot_ptr + place)
                is_run_M = slot_M == slot
                rank = tl.load(true_ranks_ptr + site.to(tl.int64) * num_slots + slot)
                page = tl.load(first_pages_ptr + site.to(tl.int64) * num_slots + slot)
                y_MO = expand_run(
                    y_MO, h_ptr, place_M, is_run_M, rank, page, memory_ptr, b_offsets_ptr, out_O,
                    num_out, max_rank, PAGE_ROWS, RANK_STEP,
                )  # fmt: skip
                place += tl.sum(is_run_M.to(tl.int32), axis=0)
        else:
            most = tl.max(rank_M, axis=0)
            sum_MO = tl.zeros([BLOCK_M, BLOCK_O], tl.float32)
            for page in tl.range(0, (most + PAGE_ROWS - 1) // PAGE_ROWS, num_stages=1):
                is_page_M = page * PAGE_ROWS < rank_M
                b_at_M = tl.load(b_offsets_ptr + first_page_M + page, mask=is_page_M, other=0)
                b_at_M = tl.multiple_of(b_at_M, 8)
                for i in tl.static_range(PAGE_ROWS):
                    rank = page * PAGE_ROWS + i
                    h_M = tl.load(
                        h_ptr + place_M.to(tl.int64) * max_rank + rank,
                        mask=rank < rank_M, other=0.0,
                    )  # fmt: skip
                    b_MO = tl.load(
                        memory_ptr + (b_at_M + i * num_out)[:, None] + out_O[None, :],
                        mask=(rank < rank_M)[:, None] & (out_O < num_out)[None, :], other=0.0,
                    )  # fmt: skip
                    sum_MO += h_M[:, None] * b_MO.to(tl.float32)
            y_MO += sum_MO
    return apply_vectors(
        y_MO, at_M, slot_M >= 0, memory_ptr, row_scales_ptr, biases_ptr, out_O, num_out
    )


def expand_(
    y_PO: Tensor,
    h_SPR: Tensor,
    groups: PairGroups,
    table: PageTable,
    first_sites: Sequence[int],
    *,
    tile_rows: int = TILE_ROWS,
    config: Config | None = None,
) -> None:
    """Add to the base's product, in place; y_PO `[P, S O]`, the sites side by side."""
    _check(y_PO, table, groups)
    num_pairs, num_sites = groups.pair_P.shape[0], len(first_sites)
    num_out = y_PO.shape[1] // num_sites
    if h_SPR.shape != (num_sites, num_pairs, table.max_rank) or not h_SPR.is_contiguous():
        raise ValueError(f"h must be [{num_sites}, {num_pairs}, {table.max_rank}], as of shrink")
    if config is None:
        config = get_config("expert_lora_expand", pairs=num_pairs, num_out=num_out)
    assert groups.runs_L4 is not None
    if num_pairs:
        grid = (groups.runs_L4.shape[0], triton.cdiv(num_out, config["BLOCK_O"]), num_sites)
        _expand_kernel[grid](
            y_PO, h_SPR, groups.runs_L4, table.memory, table.true_ranks, table.first_pages,
            table.b_offsets, table.row_scales, table.biases,
            num_pairs, num_out, y_PO.stride(0), table.num_slots, table.max_rank,
            first_sites[0], first_sites[-1],
            BLOCK_M=tile_rows, BLOCK_O=config["BLOCK_O"],
            PAGE_ROWS=PAGE_ROWS, RANK_STEP=RANK_STEP,
            num_warps=config["num_warps"], num_stages=config["num_stages"],
        )  # fmt: skip


@triton.jit
def _expand_kernel(
    y_ptr: tl.tensor,
    h_ptr: tl.tensor,
    runs_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    b_offsets_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    num_pairs: tl.tensor,
    num_out: tl.tensor,
    y_stride: tl.tensor,
    num_slots: tl.tensor,
    max_rank: tl.tensor,
    first_site: tl.tensor,
    second_site: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PAGE_ROWS: tl.constexpr,
    RANK_STEP: tl.constexpr,
) -> None:
    """A program takes BLOCK_O columns of a run at a site."""
    run_ptr = runs_ptr + tl.program_id(0) * 4
    expert = tl.load(run_ptr)
    if expert < 0:
        return
    first, end, slot = tl.load(run_ptr + 1), tl.load(run_ptr + 2), tl.load(run_ptr + 3)
    k = tl.program_id(2)
    site = tl.where(k == 0, first_site, second_site) + expert
    at = site.to(tl.int64) * num_slots + slot
    rank = tl.load(true_ranks_ptr + at)
    if row_scales_ptr is None and biases_ptr is None and rank == 0:
        return
    first_page = tl.load(first_pages_ptr + at)
    place_M = first + tl.arange(0, BLOCK_M)
    is_row_M = place_M < end
    out_O = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    y_ptrs = y_ptr + place_M[:, None].to(tl.int64) * y_stride + (k * num_out + out_O)[None, :]
    mask = is_row_M[:, None] & (out_O < num_out)[None, :]
    y_MO = tl.load(y_ptrs, mask=mask, other=0.0).to(tl.float32)
    h_ptr += k.to(tl.int64) * num_pairs * max_rank
    y_MO = expand_run(
        y_MO, h_ptr, place_M, is_row_M, rank, first_page, memory_ptr, b_offsets_ptr, out_O,
        num_out, max_rank, PAGE_ROWS, RANK_STEP,
    )  # fmt: skip
    at_M = at + tl.zeros([BLOCK_M], tl.int64)
    y_MO = apply_vectors(
        y_MO, at_M, is_row_M, memory_ptr, row_scales_ptr, biases_ptr, out_O, num_out
    )
    tl.store(y_ptrs, y_MO.to(y_ptr.dtype.element_ty), mask=mask)


def aot_variants() -> list[AotVariant]:
    """Every configuration: shrink for few pairs and many, expand with and without vectors."""
    pointers = {
        "x_ptr": "*bf16", "y_ptr": "*bf16", "h_ptr": "*fp32", "runs_ptr": "*i32",
        "pair_ptr": "*i32", "memory_ptr": "*bf16", "true_ranks_ptr": "*i32",
        "first_pages_ptr": "*i32", "a_offsets_ptr": "*i64", "b_offsets_ptr": "*i64",
        "scales_ptr": "*fp32", "row_scales_ptr": "*i64", "biases_ptr": "*i64",
    }  # fmt: skip
    aligned = ["num_in", "num_out", "x_stride", "y_stride"]
    no_vectors = dict.fromkeys(["row_scales_ptr", "biases_ptr"])
    forms: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("expert_lora_shrink", "token", _shrink_kernel, {"IS_BY_PLACE": False, "TOP_K": 8}),
        ("expert_lora_shrink", "place", _shrink_kernel, {"IS_BY_PLACE": True, "TOP_K": 8}),
        ("expert_lora_expand", "lora", _expand_kernel, no_vectors),
        ("expert_lora_expand", "dora", _expand_kernel, {}),
    ]
    variants = []
    for operator, form, kernel, constants in forms:
        names = kernel.arg_names
        for shape, config in listed_configs(operator):
            is_many = shape["pairs"] > MAX_FEW_PAIRS
            fixed = {
                "BLOCK_M": MANY_TILE_ROWS if is_many else TILE_ROWS, "FEW_PAIRS": FEW_PAIRS,
                "PAGE_ROWS": PAGE_ROWS, "RANK_STEP": RANK_STEP, **config,
            }  # fmt: skip
            width = shape.get("num_in", shape.get("num_out"))
            variants.append(
                AotVariant(
                    name=f"{operator}/{form}-p{shape['pairs']}-{width}",
                    kernel=kernel,
                    signature={name: pointers.get(name, "i32") for name in names},
                    constants={k: v for k, v in fixed.items() if k in names} | constants,
                    divisible_by_16=[n for n in names if n in pointers or n in aligned],
                    num_warps=config["num_warps"],
                    num_stages=config["num_stages"],
                    needs_mma=True,
                )
            )
    return variants
