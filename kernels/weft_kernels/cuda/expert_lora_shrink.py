"""The first half of an expert's adapters: the rank values of each pair, `h[p] = s A x[p]`.

One launch for the sites that share x (gate and up), or for down's alone. Short runs are a GEMV per
pair on CUDA cores, longer ones a tile on tensor cores. Legend as in `expert_lora.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, get_config, listed_configs
from weft_kernels.cuda.expert_lora import (
    MANY_TILE_ROWS,
    MAX_FEW_PAIRS,
    RANK_STEP,
    check_rows,
    create_variant,
)
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.cuda.pair_groups import FEW_PAIRS, TILE_ROWS, PairGroups


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
    check_rows(x, table, groups)
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


def aot_variants() -> list[AotVariant]:
    """Every configuration, with x by token and by place."""
    variants = []
    for form, is_by_place in (("token", False), ("place", True)):
        for shape, config in listed_configs("expert_lora_shrink"):
            name = f"expert_lora_shrink/{form}-p{shape['pairs']}-{shape['num_in']}"
            rows = MANY_TILE_ROWS if shape["pairs"] > MAX_FEW_PAIRS else TILE_ROWS
            constants = {"IS_BY_PLACE": is_by_place, "TOP_K": 8, "BLOCK_M": rows}
            variants.append(create_variant(name, _shrink_kernel, config, constants))
    return variants
