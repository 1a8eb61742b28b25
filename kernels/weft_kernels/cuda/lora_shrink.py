"""The first half of LoRA: each row's input times its adapter's A.

    h[p, g, r, c] = sum over k in chunk c of x[t, k] * A[site_g, slot(t)][r, k],  t = rows_P[p]

Whoever reads h adds its planes, c < C, in a fixed order.

Legend: T rows, P their places when sorted by slot (`segments.py`), I in, C planes of split-K, G
sites that share x, R rank. x_TI `[T, I]` and the pool have one float dtype, products are summed in
float32, h_PGRC `[T, G, max_rank, C]`, C rounded up to a power of two, is float32. Only ranks below
the adapter's true rank at the site are written, and only rows with an adapter.

Programs: (tile x rank part) x K chunk x site. A tile of up to GEMV_ROWS rows is a matrix-vector
product on the CUDA cores with 16-byte loads, a longer one goes through the tensor cores: the
device chooses, so one captured graph serves every mixture. No two programs write the same element.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, get_config, listed_configs
from weft_kernels.cuda.lora_sites import SiteGroup, page_rows
from weft_kernels.cuda.pages import PageTable
from weft_kernels.cuda.segments import Segments, tile_rows


def create_planes(
    group: SiteGroup, table: PageTable, segments: Segments, config: Config | None = None
) -> Tensor:
    """Room for h, not initialised: `[T, G, max_rank, C]` float32, C rounded up."""
    config = config or shrink_config(group, segments)
    planes = triton.next_power_of_2(num_planes(group.num_in, config))
    size = (segments.num_rows, len(group.sites), table.max_rank, planes)
    return torch.empty(size, dtype=torch.float32, device=table.memory.device)


def shrink_config(group: SiteGroup, segments: Segments) -> Config:
    return get_config("lora_shrink", rows=segments.num_rows, num_in=group.num_in)


def num_planes(num_in: int, config: Config) -> int:
    return -(-num_in // chunk_size(num_in, config))


def chunk_size(num_in: int, config: Config) -> int:
    """The columns of x that one program takes: whole blocks of both forms."""
    step = max(config["BLOCK_K"], config["GEMV_K"])
    return -(-num_in // (config["SPLIT"] * step)) * step


def lora_shrink(
    x_TI: Tensor,
    group: SiteGroup,
    table: PageTable,
    segments: Segments,
    *,
    out: Tensor | None = None,
    use_pdl: bool = False,
    config: Config | None = None,
) -> Tensor:
    """h_PGRC, in `out` where given. With `use_pdl` the next kernel may start beside this one."""
    config = config or shrink_config(group, segments)
    check_input(x_TI, group, table, segments)
    h_PGRC = create_planes(group, table, segments, config) if out is None else out
    _, num_sites, max_rank, planes = h_PGRC.shape
    if segments.num_rows == 0:
        return h_PGRC
    used = num_planes(group.num_in, config)
    grid = (segments.max_tiles * config["RANK_SPLIT"], used, num_sites)
    _shrink_kernel[grid](
        x_TI, table.memory, table.a_offsets, table.first_pages, table.true_ranks, group.site_ids,
        segments.rows_P, segments.tile_slots, segments.tile_starts, segments.tile_ends, h_PGRC,
        x_TI.stride(0), table.num_slots, num_sites * max_rank * planes, max_rank * planes,
        **_constants(group.num_in, segments.block_rows, config), USE_PDL=use_pdl,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return h_PGRC


def _constants(num_in: int, block_rows: int, config: Config) -> dict[str, Any]:
    return {
        "NUM_IN": num_in,
        "CHUNK": chunk_size(num_in, config),
        "PLANES": triton.next_power_of_2(num_planes(num_in, config)),
        "BLOCK_M": max(block_rows, 16),
        **{name: config[name] for name in ("BLOCK_R", "BLOCK_K", "GEMV_K", "GEMV_ROWS")},
        "RANK_SPLIT": config["RANK_SPLIT"],
    }


def check_input(x_TI: Tensor, group: SiteGroup, table: PageTable, segments: Segments) -> None:
    """ValueError where the operands of a LoRA operator do not go together."""
    if tuple(x_TI.shape) != (segments.num_rows, group.num_in) or x_TI.stride(1) != 1:
        raise ValueError(
            f"x must be [{segments.num_rows}, {group.num_in}] with unit stride along its rows, "
            f"not {tuple(x_TI.shape)} with strides {x_TI.stride()}"
        )
    if x_TI.dtype != table.memory.dtype:
        raise ValueError(f"x is {x_TI.dtype} and the pool {table.memory.dtype}")
    if segments.num_slots != table.num_slots:
        raise ValueError(
            f"segments over {segments.num_slots} slots and a table of {table.num_slots}"
        )
    if max(group.sites) >= table.num_sites:
        raise ValueError(f"site {max(group.sites)} is not one of the table's {table.num_sites}")


@triton.jit
def _shrink_kernel(
    x_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    a_offsets_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    sites_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    tile_slots_ptr: tl.tensor,
    tile_starts_ptr: tl.tensor,
    tile_ends_ptr: tl.tensor,
    h_ptr: tl.tensor,
    x_stride: tl.tensor,
    num_slots: tl.tensor,
    h_stride_place: tl.tensor,
    h_stride_site: tl.tensor,
    NUM_IN: tl.constexpr,
    CHUNK: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GEMV_K: tl.constexpr,
    GEMV_ROWS: tl.constexpr,
    RANK_SPLIT: tl.constexpr,
    USE_PDL: tl.constexpr,
) -> None:
    if USE_PDL:
        # the expand kernel only loads weights before it waits for this whole grid
        tl.extra.cuda.gdc_launch_dependents()
    tile = tl.program_id(0) // RANK_SPLIT
    slot = tl.load(tile_slots_ptr + tile)
    if slot < 0:
        return
    start = tl.load(tile_starts_ptr + tile)
    end = tl.load(tile_ends_ptr + tile)
    g = tl.program_id(2)
    at = tl.load(sites_ptr + g) * num_slots + slot
    rank = tl.load(true_ranks_ptr + at)
    first_page = tl.load(first_pages_ptr + at)
    first_rank = tl.program_id(0) % RANK_SPLIT * BLOCK_R
    first_k = tl.program_id(1) * CHUNK
    h_at = h_ptr + g * h_stride_site + tl.program_id(1)

    if end - start <= GEMV_ROWS:
        for r in range(first_rank, rank, RANK_SPLIT * BLOCK_R):
            rows_R = r + tl.arange(0, BLOCK_R)
            a_at = page_rows(a_offsets_ptr, first_page, rows_R, rank, NUM_IN)
            for place in range(start, end):
                row = tl.load(rows_ptr + place).to(tl.int64)
                h_R = shrink_row(
                    x_ptr + row * x_stride, memory_ptr, a_at, rows_R < rank, first_k,
                    NUM_IN, CHUNK, BLOCK_R, GEMV_K, 1,
                )  # fmt: skip
                h_row = h_at + place * h_stride_place
                tl.store(h_row + rows_R * PLANES, h_R, mask=rows_R < rank)
    else:
        places_M = start + tl.arange(0, BLOCK_M)
        is_row = places_M < end
        rows_M = tl.load(rows_ptr + places_M, mask=is_row, other=0).to(tl.int64)
        h_rows = h_at + places_M * h_stride_place
        for r in range(first_rank, rank, RANK_SPLIT * BLOCK_R):
            rows_R = r + tl.arange(0, BLOCK_R)
            a_at = page_rows(a_offsets_ptr, first_page, rows_R, rank, NUM_IN)
            h_MR = shrink_rows(
                x_ptr + rows_M * x_stride, is_row, memory_ptr, a_at, rows_R < rank, first_k,
                NUM_IN, CHUNK, BLOCK_M, BLOCK_R, BLOCK_K,
            )  # fmt: skip
            mask = is_row[:, None] & (rows_R < rank)[None, :]
            tl.store(h_rows[:, None] + (rows_R * PLANES)[None, :], h_MR, mask=mask)


@triton.jit
def shrink_row(
    x_row: tl.tensor,
    memory_ptr: tl.tensor,
    a_at: tl.tensor,
    is_rank: tl.tensor,
    first_k: tl.tensor,
    NUM_IN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
) -> tl.tensor:
    """float32 `[R]`: one row of x times R rows of A, over one chunk of columns."""
    h_R = tl.zeros((BLOCK_R,), dtype=tl.float32)
    # loads of a loop without a dot are pipelined only where the loop itself asks for it
    for step in tl.range(CHUNK // BLOCK_K, num_stages=NUM_STAGES):
        k = first_k + step * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = is_rank[:, None] & (k < NUM_IN)[None, :]
        a_RK = tl.load(memory_ptr + a_at[:, None] + k[None, :], mask=mask, other=0.0)
        x_K = tl.load(x_row + k, mask=k < NUM_IN, other=0.0)
        h_R += tl.sum(a_RK.to(tl.float32) * x_K.to(tl.float32)[None, :], axis=1)
    return h_R


@triton.jit
def shrink_rows(
    x_rows: tl.tensor,
    is_row: tl.tensor,
    memory_ptr: tl.tensor,
    a_at: tl.tensor,
    is_rank: tl.tensor,
    first_k: tl.tensor,
    NUM_IN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tl.tensor:
    """float32 `[M, R]`: a tile of rows of x times R rows of A, over one chunk of columns."""
    h_MR = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for step in range(CHUNK // BLOCK_K):
        k = first_k + step * BLOCK_K + tl.arange(0, BLOCK_K)
        x_MK = tl.load(
            x_rows[:, None] + k[None, :], mask=is_row[:, None] & (k < NUM_IN)[None, :], other=0.0
        )
        a_KR = tl.load(
            memory_ptr + a_at[None, :] + k[:, None],
            mask=is_rank[None, :] & (k < NUM_IN)[:, None],
            other=0.0,
        )
        h_MR = tl.dot(x_MK, a_KR, h_MR, input_precision="ieee")
    return h_MR


def aot_variants() -> list[AotVariant]:
    """Every configuration; those of one width also as the first of a PDL pair."""
    tables = ["first_pages_ptr", "true_ranks_ptr", "sites_ptr"]
    lists = ["rows_ptr", "tile_slots_ptr", "tile_starts_ptr", "tile_ends_ptr"]
    sizes = ["num_slots", "h_stride_place", "h_stride_site"]
    variants = []
    for shape, config in listed_configs("lora_shrink"):
        block_rows = tile_rows(shape["rows"])
        for use_pdl in (False, True) if shape["num_in"] == 4096 else (False,):
            variants.append(
                AotVariant(
                    name=f"lora_shrink/t{shape['rows']}-k{shape['num_in']}" + "-pdl" * use_pdl,
                    kernel=_shrink_kernel,
                    signature={"x_ptr": "*bf16", "memory_ptr": "*bf16", "h_ptr": "*fp32"}
                    | {"a_offsets_ptr": "*i64", "x_stride": "i32"}
                    | dict.fromkeys(tables + lists, "*i32")
                    | dict.fromkeys(sizes, "i32"),
                    constants=_constants(shape["num_in"], block_rows, config)
                    | {"USE_PDL": use_pdl},
                    divisible_by_16=["x_ptr", "memory_ptr", "a_offsets_ptr", "h_ptr", "x_stride"],
                    num_warps=config["num_warps"],
                    num_stages=config["num_stages"],
                    needs_mma=True,
                )
            )
    return variants
