"""LoRA of a small batch in one launch: `lora_shrink` and `lora_expand_` without h in between.

    y[t, n] = m[n] * (y[t, n] - bias[n] + s * sum_r (sum_k x[t, k] A[r, k]) B[r, n])
              + bias[n] + adapter_bias[n]

Operands as in `lora_expand`. Every program shrinks its tile itself and expands into one block of
columns, so A is read once per block of columns, all times but the first from the L2 cache. That
costs less than a second launch while blocks are wide and batches small; `lora.py` chooses.

Programs: tile x block of columns; tiles of up to GEMV_ROWS rows on CUDA cores, longer ones on
tensor cores.
"""

from __future__ import annotations

from typing import Any

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
from weft_kernels.cuda.lora_shrink import check_input, shrink_row, shrink_rows
from weft_kernels.cuda.lora_sites import SiteGroup, page_rows
from weft_kernels.cuda.pages import PageTable
from weft_kernels.cuda.segments import Segments, tile_rows


def lora_fused_(
    y_TO: Tensor,
    x_TI: Tensor,
    group: SiteGroup,
    table: PageTable,
    segments: Segments,
    *,
    bias_O: Tensor | None = None,
    config: Config | None = None,
) -> None:
    """Add the adapters' part to y, which comes in as W x + bias."""
    check_input(x_TI, group, table, segments)
    check_output(y_TO, bias_O, group, table, segments)
    if segments.num_rows == 0:
        return
    config = config or get_config("lora_fused", num_in=group.num_in, num_out=group.num_out)
    chunks = group.chunks(config["BLOCK_N"])
    _fused_kernel[(segments.max_tiles, chunks.shape[0])](
        y_TO, x_TI, *table_arguments(table, bias_O), table.a_offsets, group.site_ids, chunks,
        segments.rows_P, segments.tile_slots, segments.tile_starts, segments.tile_ends,
        y_TO.stride(0), x_TI.stride(0), table.num_slots,
        BLOCK_M=max(segments.block_rows, 16), **_constants(group.num_in, config),
        **block_constants(config, group.is_aligned),
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip


def _constants(num_in: int, config: Config) -> dict[str, Any]:
    step = max(config["BLOCK_K"], config["GEMV_K"])
    return {
        "NUM_IN": num_in,
        "CHUNK": -(-num_in // step) * step,
        "BLOCK_K": config["BLOCK_K"],
        "GEMV_K": config["GEMV_K"],
        "NUM_STAGES": config["num_stages"],
    }


@triton.jit
def _fused_kernel(
    y_ptr: tl.tensor,
    x_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    b_offsets_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    a_offsets_ptr: tl.tensor,
    sites_ptr: tl.tensor,
    chunks_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    tile_slots_ptr: tl.tensor,
    tile_starts_ptr: tl.tensor,
    tile_ends_ptr: tl.tensor,
    y_stride: tl.tensor,
    x_stride: tl.tensor,
    num_slots: tl.tensor,
    NUM_IN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GEMV_K: tl.constexpr,
    GEMV_ROWS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
) -> None:
    slot = tl.load(tile_slots_ptr + tl.program_id(0))
    if slot < 0:
        return
    start = tl.load(tile_starts_ptr + tl.program_id(0))
    end = tl.load(tile_ends_ptr + tl.program_id(0))
    g, n_N, column, width = chunk_columns(chunks_ptr, tl.program_id(1), BLOCK_N, IS_ALIGNED)
    at = tl.load(sites_ptr + g) * num_slots + slot
    rank = tl.load(true_ranks_ptr + at)
    if row_scales_ptr is None and biases_ptr is None and rank == 0:
        return  # the adapter does not touch the site
    first_page = tl.load(first_pages_ptr + at)
    scale = tl.load(scales_ptr + at)
    is_column = n_N < width
    m_N, c_N = vectors(
        memory_ptr, row_scales_ptr, biases_ptr, bias_ptr, at, n_N, column, is_column, BLOCK_N
    )

    if end - start <= GEMV_ROWS:
        for place in range(start, end):
            row = tl.load(rows_ptr + place).to(tl.int64)
            d_N = tl.zeros((BLOCK_N,), dtype=tl.float32)
            for r in range(0, rank, BLOCK_R):
                rows_R = r + tl.arange(0, BLOCK_R)
                b_at = page_rows(b_offsets_ptr, first_page, rows_R, rank, width)
                b_mask = (rows_R < rank)[:, None] & is_column[None, :]
                b_RN = tl.load(memory_ptr + b_at[:, None] + n_N[None, :], mask=b_mask, other=0.0)
                a_at = page_rows(a_offsets_ptr, first_page, rows_R, rank, NUM_IN)
                h_R = shrink_row(
                    x_ptr + row * x_stride, memory_ptr, a_at, rows_R < rank, 0,
                    NUM_IN, CHUNK, BLOCK_R, GEMV_K, NUM_STAGES,
                )  # fmt: skip
                d_N += tl.sum(b_RN.to(tl.float32) * h_R[:, None], axis=0)
            y_N = y_ptr + row * y_stride + column + n_N
            y = tl.load(y_N, mask=is_column, other=0.0).to(tl.float32)
            y = m_N * (y + scale * d_N) + c_N
            tl.store(y_N, y.to(y_ptr.dtype.element_ty), mask=is_column)
    else:
        places_M = start + tl.arange(0, BLOCK_M)
        is_row = places_M < end
        rows_M = tl.load(rows_ptr + places_M, mask=is_row, other=0).to(tl.int64)
        d_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for r in range(0, rank, BLOCK_R):
            rows_R = r + tl.arange(0, BLOCK_R)
            b_at = page_rows(b_offsets_ptr, first_page, rows_R, rank, width)
            b_mask = (rows_R < rank)[:, None] & is_column[None, :]
            b_RN = tl.load(memory_ptr + b_at[:, None] + n_N[None, :], mask=b_mask, other=0.0)
            a_at = page_rows(a_offsets_ptr, first_page, rows_R, rank, NUM_IN)
            h_MR = shrink_rows(
                x_ptr + rows_M * x_stride, is_row, memory_ptr, a_at, rows_R < rank, 0,
                NUM_IN, CHUNK, BLOCK_M, BLOCK_R, BLOCK_K,
            )  # fmt: skip
            d_MN = tl.dot(h_MR.to(b_RN.dtype), b_RN, d_MN, input_precision="ieee")
        y_rows = y_ptr + rows_M * y_stride + column
        add_to_rows(y_rows, is_row, n_N, is_column, d_MN, scale, m_N, c_N)


def aot_variants() -> list[AotVariant]:
    """Every configuration, with vectors too for one shape."""
    tables = ["sites_ptr", "chunks_ptr", "rows_ptr", "tile_slots_ptr", "tile_starts_ptr"]
    variants = []
    for shape, config in listed_configs("lora_fused"):
        num_in, num_out = shape["num_in"], shape["num_out"]
        for form in ("plain", "vectors") if num_in == num_out else ("plain",):
            variants.append(
                AotVariant(
                    name=f"lora_fused/k{num_in}-n{num_out}-{form}",
                    kernel=_fused_kernel,
                    signature={"y_ptr": "*bf16", "x_ptr": "*bf16", "a_offsets_ptr": "*i64"}
                    | TABLE_SIGNATURE
                    | dict.fromkeys([*tables, "tile_ends_ptr"], "*i32")
                    | dict.fromkeys(["y_stride", "x_stride", "num_slots"], "i32"),
                    constants={"BLOCK_M": tile_rows(1)}
                    | _constants(num_in, config)
                    | block_constants(config, is_aligned=True)
                    | ({} if form == "vectors" else WITHOUT_VECTORS),
                    divisible_by_16=[
                        "y_ptr", "x_ptr", "memory_ptr", "bias_ptr", "y_stride", "x_stride",
                    ],
                    num_warps=config["num_warps"],
                    num_stages=config["num_stages"],
                    needs_mma=True,
                )
            )  # fmt: skip
    return variants
