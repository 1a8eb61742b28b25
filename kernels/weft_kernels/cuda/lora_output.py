"""What the kernels that write y of a LoRA operator share: the check of y, columns by site, and the
epilogue.

    y[t, n] = m[n] * (y[t, n] - bias[n] + d[t, n]) + bias[n] + adapter_bias[n]

computed as `m * (y + d) + c`. Legend: O columns of y over all G sites of a group, N a program's
columns within a site, M its rows. y_TO `[T, O]`, bias_O `[O]` and the pool have one float dtype.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.configs import Config
from weft_kernels.cuda.lora_sites import SiteGroup
from weft_kernels.cuda.pages import PageTable
from weft_kernels.cuda.segments import Segments


def check_output(
    y_TO: Tensor, bias_O: Tensor | None, group: SiteGroup, table: PageTable, segments: Segments
) -> None:
    """ValueError where the outputs of a LoRA operator do not go together."""
    if tuple(y_TO.shape) != (segments.num_rows, group.num_out) or y_TO.stride(1) != 1:
        raise ValueError(
            f"y must be [{segments.num_rows}, {group.num_out}] with unit stride along its rows, "
            f"not {tuple(y_TO.shape)} with strides {y_TO.stride()}"
        )
    if bias_O is not None and (tuple(bias_O.shape) != (group.num_out,) or bias_O.stride(0) != 1):
        raise ValueError(f"bias must be contiguous [{group.num_out}], not {tuple(bias_O.shape)}")
    if any(t is not None and t.dtype != table.memory.dtype for t in (y_TO, bias_O)):
        raise ValueError(f"y and bias must be {table.memory.dtype}, as the pool")


def table_arguments(table: PageTable, bias_O: Tensor | None) -> tuple[Tensor | None, ...]:
    """What the kernels that read B take of a table, in their order."""
    return (
        bias_O, table.memory, table.b_offsets, table.first_pages, table.true_ranks, table.scales,
        table.row_scales, table.biases,
    )  # fmt: skip


def block_constants(config: Config, is_aligned: bool) -> dict[str, Any]:
    blocks = {name: config[name] for name in ("BLOCK_N", "BLOCK_R", "GEMV_ROWS")}
    return {**blocks, "IS_ALIGNED": is_aligned}


# how the arguments of the kernels that read B are typed; those with vectors have DoRA and biases
TABLE_SIGNATURE = {
    "bias_ptr": "*bf16", "memory_ptr": "*bf16", "b_offsets_ptr": "*i64", "first_pages_ptr": "*i32",
    "true_ranks_ptr": "*i32", "scales_ptr": "*fp32", "row_scales_ptr": "*i64", "biases_ptr": "*i64",
}  # fmt: skip
WITHOUT_VECTORS = {"bias_ptr": None, "row_scales_ptr": None, "biases_ptr": None}


@triton.jit
def chunk_columns(
    chunks_ptr: tl.tensor, chunk: tl.tensor, BLOCK_N: tl.constexpr, IS_ALIGNED: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """A block of columns: g, the columns within site g, the site's first column in y and width."""
    g = tl.load(chunks_ptr + chunk * 4)
    first = tl.multiple_of(tl.load(chunks_ptr + chunk * 4 + 1), BLOCK_N)
    column = tl.load(chunks_ptr + chunk * 4 + 2)
    width = tl.load(chunks_ptr + chunk * 4 + 3)
    if IS_ALIGNED:
        column = tl.multiple_of(column, 8)
        width = tl.multiple_of(width, 8)
    return g, first + tl.arange(0, BLOCK_N), column, width


@triton.jit
def vectors(
    memory_ptr: tl.tensor,
    row_scales_ptr: tl.tensor,
    biases_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    at: tl.tensor,
    n_N: tl.tensor,
    column: tl.tensor,
    is_column: tl.tensor,
    BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """m and c of `y = m * (y + d) + c`, float32 `[N]`: c = (1 - m) bias + adapter_bias."""
    m_N = tl.full((BLOCK_N,), 1.0, dtype=tl.float32)
    c_N = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if row_scales_ptr is not None:
        m_at = tl.load(row_scales_ptr + at)
        m_N = tl.load(memory_ptr + m_at + n_N, mask=is_column & (m_at >= 0), other=1.0)
        m_N = m_N.to(tl.float32)
        if bias_ptr is not None:
            bias_N = tl.load(bias_ptr + column + n_N, mask=is_column, other=0.0).to(tl.float32)
            c_N = tl.where(m_at >= 0, (1.0 - m_N) * bias_N, c_N)
    if biases_ptr is not None:
        own_at = tl.load(biases_ptr + at)
        own_N = tl.load(memory_ptr + own_at + n_N, mask=is_column & (own_at >= 0), other=0.0)
        c_N += own_N.to(tl.float32)
    return m_N, c_N


@triton.jit
def add_to_rows(
    y_rows: tl.tensor,
    is_row: tl.tensor,
    n_N: tl.tensor,
    is_column: tl.tensor,
    d_MN: tl.tensor,
    scale: tl.tensor,
    m_N: tl.tensor,
    c_N: tl.tensor,
) -> None:
    """`y = m * (y + s * d) + c` for a tile of rows."""
    y_MN = y_rows[:, None] + n_N[None, :]
    mask = is_row[:, None] & is_column[None, :]
    y = tl.load(y_MN, mask=mask, other=0.0).to(tl.float32)
    y = m_N[None, :] * (y + scale * d_MN) + c_N[None, :]
    tl.store(y_MN, y.to(y_rows.dtype.element_ty), mask=mask)
