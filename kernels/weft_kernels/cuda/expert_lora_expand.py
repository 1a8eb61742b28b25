"""The second half of an expert's adapters: `y[p] = m * (y[p] + B h[p]) + b`.

For few tokens it is the last part of the base GEMM's own tile (`expand_tile`, in `expert_mm.py`);
for many, `expand_` adds to the base's finished product. Legend as in `expert_lora.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, get_config, listed_configs
from weft_kernels.cuda.expert_lora import (
    MANY_TILE_ROWS,
    MAX_FEW_PAIRS,
    RANK_STEP,
    WITHOUT_VECTORS,
    check_rows,
    create_variant,
)
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.cuda.pair_groups import TILE_ROWS, PairGroups


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
    check_rows(y_PO, table, groups)
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


def aot_variants() -> list[AotVariant]:
    """Every configuration, with and without row scales and biases."""
    variants = []
    for form, absent in (("lora", WITHOUT_VECTORS), ("dora", {})):
        for shape, config in listed_configs("expert_lora_expand"):
            name = f"expert_lora_expand/{form}-p{shape['pairs']}-{shape['num_out']}"
            rows = MANY_TILE_ROWS if shape["pairs"] > MAX_FEW_PAIRS else TILE_ROWS
            variants.append(
                create_variant(name, _expand_kernel, config, {"BLOCK_M": rows, **absent})
            )
    return variants
