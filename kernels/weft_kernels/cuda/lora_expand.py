"""The second half of LoRA: each row's rank values times its adapter's B, added into y in place.

    d[t, n] = s * sum_r (sum_c h[p, g, r, c]) * B[site_g, slot(t)][r, n],      t = rows_P[p]
    y[t, n] = m[n] * (y[t, n] - bias[n] + d[t, n]) + bias[n] + adapter_bias[n]

with n the columns of site g, m = 1 and adapter_bias = 0 where the adapter has none, so that y must
come in as W x + bias. Rows without an adapter are neither read nor written.

Legend: T rows, P their places when sorted by slot, O columns of y over all G sites, C planes of h,
R rank. y_TO `[T, O]`, bias_O `[O]` and the pool have one float dtype; h_PGRC as `lora_shrink`
writes it; sums are float32 and rounded once.

Programs: tile x block of columns, in blocks that do not cross sites. As in `lora_shrink`, the
device picks CUDA or tensor cores by the length of the tile. With PDL the kernel starts beside
`lora_shrink` and has the first block of B, which does not depend on x, before it waits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, get_config, listed_configs
from weft_kernels.cuda.lora_output import (
    TABLE_SIGNATURE,
    WITHOUT_VECTORS,
    add_to_rows,
    block_constants,
    check_output,
    chunk_columns,
    table_arguments,
    vectors,
)
from weft_kernels.cuda.lora_sites import SiteGroup, page_rows
from weft_kernels.cuda.pages import PageTable
from weft_kernels.cuda.segments import Segments, tile_rows


def lora_expand_(
    y_TO: Tensor,
    h_PGRC: Tensor,
    num_planes: int,
    group: SiteGroup,
    table: PageTable,
    segments: Segments,
    *,
    bias_O: Tensor | None = None,
    use_pdl: bool = False,
    config: Config | None = None,
) -> None:
    """num_planes: as many as `lora_shrink` wrote. use_pdl: start beside the kernel before, which
    must be `lora_shrink` with the same."""
    check_output(y_TO, bias_O, group, table, segments)
    if segments.num_rows == 0:
        return
    config = config or get_config("lora_expand", rows=segments.num_rows, num_out=group.num_out)
    chunks = group.chunks(config["BLOCK_N"])
    _, num_sites, max_rank, planes = h_PGRC.shape
    _expand_kernel[(segments.max_tiles, chunks.shape[0])](
        y_TO, h_PGRC, *table_arguments(table, bias_O), group.site_ids, chunks,
        segments.rows_P, segments.tile_slots, segments.tile_starts, segments.tile_ends,
        y_TO.stride(0), table.num_slots, num_sites * max_rank * planes, max_rank * planes,
        NUM_PLANES=num_planes, PLANES=planes, BLOCK_M=max(segments.block_rows, 16),
        **block_constants(config, group.is_aligned), USE_PDL=use_pdl, launch_pdl=use_pdl,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip


@triton.jit
def _expand_kernel(
    y_ptr: tl.tensor,
    h_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    b_offsets_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    sites_ptr: tl.tensor,
    chunks_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    tile_slots_ptr: tl.tensor,
    tile_starts_ptr: tl.tensor,
    tile_ends_ptr: tl.tensor,
    y_stride: tl.tensor,
    num_slots: tl.tensor,
    h_stride_place: tl.tensor,
    h_stride_site: tl.tensor,
    NUM_PLANES: tl.constexpr,
    PLANES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GEMV_ROWS: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    USE_PDL: tl.constexpr,
) -> None:
    slot = tl.load(tile_slots_ptr + tl.program_id(0))
    if slot < 0:
        if USE_PDL:
            # also here: the kernel after this one counts on this one having waited
            tl.extra.cuda.gdc_wait()
        return
    start = tl.load(tile_starts_ptr + tl.program_id(0))
    end = tl.load(tile_ends_ptr + tl.program_id(0))
    g, n_N, column, width = chunk_columns(chunks_ptr, tl.program_id(1), BLOCK_N, IS_ALIGNED)
    at = tl.load(sites_ptr + g) * num_slots + slot
    rank = tl.load(true_ranks_ptr + at)
    if row_scales_ptr is None and biases_ptr is None and rank == 0:
        # the adapter does not touch the site
        if USE_PDL:
            tl.extra.cuda.gdc_wait()
        return
    first_page = tl.load(first_pages_ptr + at)
    scale = tl.load(scales_ptr + at)
    is_column = n_N < width
    ranks_R = tl.arange(0, BLOCK_R)
    b_at = page_rows(b_offsets_ptr, first_page, ranks_R, rank, width)
    b_mask = (ranks_R < rank)[:, None] & is_column[None, :]
    b_RN = tl.load(memory_ptr + b_at[:, None] + n_N[None, :], mask=b_mask, other=0.0)
    m_N, c_N = vectors(
        memory_ptr, row_scales_ptr, biases_ptr, bias_ptr, at, n_N, column, is_column, BLOCK_N
    )
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    h_at = h_ptr + g * h_stride_site

    if end - start <= GEMV_ROWS:
        for place in range(start, end):
            h_row = h_at + place * h_stride_place
            h_R = _sum_planes(h_row + ranks_R * PLANES, ranks_R < rank, NUM_PLANES, PLANES)
            d_N = tl.sum(b_RN.to(tl.float32) * h_R[:, None], axis=0)
            for r in range(BLOCK_R, rank, BLOCK_R):
                rows_R = r + ranks_R
                more_at = page_rows(b_offsets_ptr, first_page, rows_R, rank, width)
                more_mask = (rows_R < rank)[:, None] & is_column[None, :]
                more_RN = tl.load(
                    memory_ptr + more_at[:, None] + n_N[None, :], mask=more_mask, other=0.0
                )
                h_R = _sum_planes(h_row + rows_R * PLANES, rows_R < rank, NUM_PLANES, PLANES)
                d_N += tl.sum(more_RN.to(tl.float32) * h_R[:, None], axis=0)
            row = tl.load(rows_ptr + place).to(tl.int64)
            y_N = y_ptr + row * y_stride + column + n_N
            y = tl.load(y_N, mask=is_column, other=0.0).to(tl.float32)
            y = m_N * (y + scale * d_N) + c_N
            tl.store(y_N, y.to(y_ptr.dtype.element_ty), mask=is_column)
    else:
        places_M = start + tl.arange(0, BLOCK_M)
        is_row = places_M < end
        h_rows = h_at + places_M * h_stride_place
        h_mask = is_row[:, None] & (ranks_R < rank)[None, :]
        h_MR = sum_planes(h_rows[:, None] + (ranks_R * PLANES)[None, :], h_mask, NUM_PLANES, PLANES)
        d_MN = tl.dot(h_MR.to(b_RN.dtype), b_RN, input_precision="ieee")
        for r in range(BLOCK_R, rank, BLOCK_R):
            rows_R = r + ranks_R
            more_at = page_rows(b_offsets_ptr, first_page, rows_R, rank, width)
            more_mask = (rows_R < rank)[:, None] & is_column[None, :]
            more_RN = tl.load(
                memory_ptr + more_at[:, None] + n_N[None, :], mask=more_mask, other=0.0
            )
            h_mask = is_row[:, None] & (rows_R < rank)[None, :]
            h_MR = sum_planes(
                h_rows[:, None] + (rows_R * PLANES)[None, :], h_mask, NUM_PLANES, PLANES
            )
            d_MN = tl.dot(h_MR.to(more_RN.dtype), more_RN, d_MN, input_precision="ieee")
        rows_M = tl.load(rows_ptr + places_M, mask=is_row, other=0).to(tl.int64)
        add_to_rows(
            y_ptr + rows_M * y_stride + column, is_row, n_N, is_column, d_MN, scale, m_N, c_N
        )


@triton.jit
def _sum_planes(
    h_R: tl.tensor, mask: tl.tensor, NUM_PLANES: tl.constexpr, PLANES: tl.constexpr
) -> tl.tensor:
    """float32 `[R]`: the planes of a vector of h, which lie side by side."""
    planes = tl.arange(0, PLANES)
    h_mask = mask[:, None] & (planes < NUM_PLANES)[None, :]
    return tl.sum(tl.load(h_R[:, None] + planes[None, :], mask=h_mask, other=0.0), axis=1)


@triton.jit
def sum_planes(
    h_MR: tl.tensor, mask: tl.tensor, NUM_PLANES: tl.constexpr, PLANES: tl.constexpr
) -> tl.tensor:
    """float32 `[M, R]`: the planes of a matrix of h."""
    planes = tl.arange(0, PLANES)
    h_mask = mask[:, :, None] & (planes < NUM_PLANES)[None, None, :]
    return tl.sum(tl.load(h_MR[:, :, None] + planes[None, None, :], mask=h_mask, other=0.0), axis=2)


def aot_variants() -> list[AotVariant]:
    """Every configuration; those of one width also with vectors and as the second of a PDL pair."""
    lists = ["sites_ptr", "chunks_ptr", "rows_ptr", "tile_slots_ptr", "tile_starts_ptr"]
    sizes = ["num_slots", "h_stride_place", "h_stride_site"]
    variants = []
    for shape, config in listed_configs("lora_expand"):
        block_rows = tile_rows(shape["rows"])
        for form in ("plain", "vectors", "pdl") if shape["num_out"] == 4096 else ("plain",):
            variants.append(
                AotVariant(
                    name=f"lora_expand/t{shape['rows']}-n{shape['num_out']}-{form}",
                    kernel=_expand_kernel,
                    signature={"y_ptr": "*bf16", "h_ptr": "*fp32", "y_stride": "i32"}
                    | TABLE_SIGNATURE
                    | dict.fromkeys([*lists, "tile_ends_ptr"], "*i32")
                    | dict.fromkeys(sizes, "i32"),
                    constants=dict.fromkeys(["NUM_PLANES", "PLANES"], 8 if block_rows == 16 else 2)
                    | {"BLOCK_M": block_rows}
                    | block_constants(config, is_aligned=True)
                    | {"USE_PDL": form == "pdl"}
                    | ({} if form == "vectors" else WITHOUT_VECTORS),
                    divisible_by_16=["y_ptr", "h_ptr", "memory_ptr", "bias_ptr", "y_stride"]
                    + sizes[1:],
                    num_warps=config["num_warps"],
                    num_stages=config["num_stages"],
                    needs_mma=True,
                    launch_pdl=form == "pdl",
                )
            )
    return variants
