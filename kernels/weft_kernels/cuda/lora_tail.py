"""LoRA as the K-tail of the base GEMM, for small batches: one GEMM reads W and then the used Bs.

    y[t] = m * ([x[t] | s h[t]] [W | B_1 | ... | B_R]^T) + bias + adapter_bias

with h masked to the columns of the row's own adapter. Against base GEMM and `lora_expand_`, y is
written once and never read, and B streams behind W in the same programs. h is `lora_shrink`'s, of
which this kernel needs nothing until its K loop reaches the tail: with PDL it starts beside it.

Legend: T rows, P their places when sorted by slot, I in, O out over all sites that share x, R runs.
x_TI `[T, I]`, w_IO `[I, O]`, bias_O `[O]`, y_TO `[T, O]` and the pool have one float dtype; sums
are float32 and rounded once, h is rounded to that dtype before its product. Rows are taken in
sorted order, so that a tile of rows reads only the pages of its own runs, from lists that
`tail_pages.py` makes once per step. Weights must be finite, as intake has it: in a tile, each row
adds the other rows' B times 0.

Programs: tile of rows x block of columns, each over the whole K.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.configs import Config, get_config, listed_configs
from weft_kernels.cuda.lora_expand import sum_planes
from weft_kernels.cuda.lora_output import check_output, chunk_columns
from weft_kernels.cuda.lora_sites import SiteGroup
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.cuda.segments import Segments
from weft_kernels.cuda.tail_pages import TailPages

_PAGE_ROWS = tl.constexpr(PAGE_ROWS)


def lora_tail(
    x_TI: Tensor,
    w_IO: Tensor,
    h_PGRC: Tensor,
    num_planes: int,
    group: SiteGroup,
    table: PageTable,
    segments: Segments,
    pages: TailPages,
    *,
    bias_O: Tensor | None = None,
    out: Tensor | None = None,
    use_pdl: bool = False,
    config: Config | None = None,
) -> Tensor:
    """y_TO, in `out` where given. num_planes and use_pdl as for `lora_expand_`."""
    if tuple(w_IO.shape) != (group.num_in, group.num_out) or w_IO.stride(1) != 1:
        raise ValueError(
            f"w must be [{group.num_in}, {group.num_out}] with unit stride along its rows, "
            f"not {tuple(w_IO.shape)} with strides {w_IO.stride()}"
        )
    if w_IO.dtype != table.memory.dtype:
        raise ValueError(f"w is {w_IO.dtype} and the pool {table.memory.dtype}")
    if max(group.sites) >= pages.firsts.shape[0]:
        raise ValueError(f"the tail pages do not cover site {max(group.sites)}")
    y_TO = x_TI.new_empty(segments.num_rows, group.num_out) if out is None else out
    check_output(y_TO, bias_O, group, table, segments)
    if segments.num_rows == 0:
        return y_TO
    config = config or get_config("lora_tail", rows=segments.num_rows, num_out=group.num_out)
    chunks = group.chunks(config["BLOCK_N"])
    _, num_sites, max_rank, planes = h_PGRC.shape
    grid = (triton.cdiv(segments.num_rows, config["BLOCK_M"]), chunks.shape[0])
    _tail_kernel[grid](
        y_TO, x_TI, w_IO, h_PGRC, bias_O, table.memory, table.row_scales, table.biases,
        pages.offsets, pages.codes, pages.scales, pages.firsts, group.site_ids, chunks,
        segments.rows_P, segments.runs_P, segments.run_slots,
        segments.num_rows, segments.max_runs, table.num_slots, pages.offsets.shape[1],
        y_TO.stride(0), x_TI.stride(0), w_IO.stride(0),
        num_sites * max_rank * planes, max_rank * planes,
        NUM_PLANES=num_planes, PLANES=planes, PAGES_PER_RUN=pages.pages_per_run,
        **_constants(group.num_in, config), IS_ALIGNED=group.is_aligned,
        USE_PDL=use_pdl, launch_pdl=use_pdl,
        num_warps=config["num_warps"], num_stages=config["num_stages"],
    )  # fmt: skip
    return y_TO


def _constants(num_in: int, config: Config) -> dict[str, Any]:
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_R")
    return {"NUM_IN": num_in, **{name: config[name] for name in names}}


@triton.jit
def _tail_kernel(
    y_ptr: tl.tensor,
    x_ptr: tl.tensor,
    w_ptr: tl.tensor,
    h_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    memory_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    page_offsets_ptr: tl.tensor,
    page_codes_ptr: tl.tensor,
    page_scales_ptr: tl.tensor,
    page_firsts_ptr: tl.tensor,
    sites_ptr: tl.tensor,
    chunks_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    runs_ptr: tl.tensor,
    run_slots_ptr: tl.tensor,
    num_rows: tl.tensor,
    max_runs: tl.tensor,
    num_slots: tl.tensor,
    max_entries: tl.tensor,
    y_stride: tl.tensor,
    x_stride: tl.tensor,
    w_stride: tl.tensor,
    h_stride_place: tl.tensor,
    h_stride_site: tl.tensor,
    NUM_IN: tl.constexpr,
    NUM_PLANES: tl.constexpr,
    PLANES: tl.constexpr,
    PAGES_PER_RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    USE_PDL: tl.constexpr,
) -> None:
    places_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = places_M < num_rows
    rows_M = tl.load(rows_ptr + places_M, mask=is_row, other=0).to(tl.int64)
    g, n_N, column, width = chunk_columns(chunks_ptr, tl.program_id(1), BLOCK_N, IS_ALIGNED)
    is_column = n_N < width
    acc_MN = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)

    x_rows = x_ptr + rows_M * x_stride
    w_columns = w_ptr + column + n_N
    for step in range((NUM_IN + BLOCK_K - 1) // BLOCK_K):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        x_mask = is_row[:, None] & (k < NUM_IN)[None, :]
        x_MK = tl.load(x_rows[:, None] + k[None, :], mask=x_mask, other=0.0)
        w_mask = (k < NUM_IN)[:, None] & is_column[None, :]
        w_rows = k.to(tl.int64)[:, None] * w_stride
        w_KN = tl.load(w_columns[None, :] + w_rows, mask=w_mask, other=0.0)
        acc_MN = tl.dot(x_MK, w_KN, acc_MN, input_precision="ieee")

    # rows without an adapter have run -1 and lie behind all others
    runs_M = tl.load(runs_ptr + places_M, mask=is_row, other=-1)
    last_run = tl.max(runs_M)
    has_runs = last_run >= 0
    site = tl.load(sites_ptr + g)
    firsts = page_firsts_ptr + site * (max_runs + 1)
    first_run = tl.load(runs_ptr + tl.program_id(0) * BLOCK_M)
    first = tl.load(firsts + first_run, mask=has_runs, other=0)
    end = tl.load(firsts + last_run + 1, mask=has_runs, other=0)
    lists_at = site.to(tl.int64) * max_entries
    rows_R = tl.arange(0, BLOCK_R) % _PAGE_ROWS
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
    for entry in range(first, end, BLOCK_R // _PAGE_ROWS):
        entries_R = entry + tl.arange(0, BLOCK_R) // _PAGE_ROWS
        is_entry = entries_R < end
        codes_R = tl.load(page_codes_ptr + lists_at + entries_R, mask=is_entry, other=0)
        offsets_R = tl.load(page_offsets_ptr + lists_at + entries_R, mask=is_entry, other=0)
        scales_R = tl.load(page_scales_ptr + lists_at + entries_R, mask=is_entry, other=0.0)
        is_live = is_entry & (rows_R <= codes_R % _PAGE_ROWS)
        pages_R = codes_R // _PAGE_ROWS
        b_at = tl.multiple_of(offsets_R, 8) + rows_R * width
        b_mask = is_live[:, None] & is_column[None, :]
        b_RN = tl.load(memory_ptr + b_at[:, None] + n_N[None, :], mask=b_mask, other=0.0)
        ranks_R = (pages_R % PAGES_PER_RUN) * _PAGE_ROWS + rows_R
        h_at = g * h_stride_site + places_M[:, None] * h_stride_place + ranks_R[None, :] * PLANES
        is_own = (runs_M[:, None] == (pages_R // PAGES_PER_RUN)[None, :]) & is_live[None, :]
        h_MR = sum_planes(h_ptr + h_at, is_own, NUM_PLANES, PLANES) * scales_R[None, :]
        acc_MN = tl.dot(h_MR.to(b_RN.dtype), b_RN, acc_MN, input_precision="ieee")

    slots_M = tl.load(run_slots_ptr + runs_M, mask=runs_M >= 0, other=0)
    at_M = site * num_slots + slots_M
    if row_scales_ptr is not None:
        m_at = tl.load(row_scales_ptr + at_M, mask=runs_M >= 0, other=-1)
        m_mask = (m_at >= 0)[:, None] & is_column[None, :]
        m_MN = tl.load(memory_ptr + m_at[:, None] + n_N[None, :], mask=m_mask, other=1.0)
        acc_MN *= m_MN.to(tl.float32)
    if biases_ptr is not None:
        own_at = tl.load(biases_ptr + at_M, mask=runs_M >= 0, other=-1)
        own_mask = (own_at >= 0)[:, None] & is_column[None, :]
        own_MN = tl.load(memory_ptr + own_at[:, None] + n_N[None, :], mask=own_mask, other=0.0)
        acc_MN += own_MN.to(tl.float32)
    if bias_ptr is not None:
        bias_N = tl.load(bias_ptr + column + n_N, mask=is_column, other=0.0)
        acc_MN += bias_N.to(tl.float32)[None, :]
    y_MN = y_ptr + (rows_M * y_stride)[:, None] + column + n_N[None, :]
    mask = is_row[:, None] & is_column[None, :]
    tl.store(y_MN, acc_MN.to(y_ptr.dtype.element_ty), mask=mask)


def aot_variants() -> list[AotVariant]:
    """Every configuration behind `lora_shrink`; one also with vectors and without PDL."""
    halves = ["y_ptr", "x_ptr", "w_ptr", "bias_ptr", "memory_ptr"]
    longs = ["row_scales_ptr", "biases_ptr", "page_offsets_ptr"]
    lists = [
        "page_codes_ptr", "page_firsts_ptr", "sites_ptr", "chunks_ptr", "rows_ptr", "runs_ptr",
        "run_slots_ptr",
    ]  # fmt: skip
    strides = ["y_stride", "x_stride", "w_stride", "h_stride_place", "h_stride_site"]
    counts = ["num_rows", "max_runs", "num_slots", "max_entries"]
    variants = []
    for shape, config in listed_configs("lora_tail"):
        for form in ("pdl", "vectors") if shape["num_out"] == 4096 else ("pdl",):
            variants.append(
                AotVariant(
                    name=f"lora_tail/t{shape['rows']}-n{shape['num_out']}-{form}",
                    kernel=_tail_kernel,
                    signature=dict.fromkeys(halves, "*bf16")
                    | dict.fromkeys(longs, "*i64")
                    | dict.fromkeys(["h_ptr", "page_scales_ptr"], "*fp32")
                    | dict.fromkeys(lists, "*i32")
                    | dict.fromkeys(strides + counts, "i32"),
                    constants={"NUM_PLANES": 8, "PLANES": 8, "PAGES_PER_RUN": 32}
                    | _constants(4096, config)
                    | {"IS_ALIGNED": True, "USE_PDL": form == "pdl"}
                    | ({} if form == "vectors" else {"row_scales_ptr": None, "biases_ptr": None}),
                    divisible_by_16=[*halves, "h_ptr", *strides],
                    num_warps=config["num_warps"],
                    num_stages=config["num_stages"],
                    needs_mma=True,
                    launch_pdl=form == "pdl",
                )
            )
    return variants
