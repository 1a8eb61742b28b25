"""Adapted linear on CUDA: one base GEMM, and each row's own low-rank adapter, for a mixed batch.

    y[t] = m * (x[t] W + s * (x[t] A^T) B) + bias + adapter_bias

with A, B, the scale s, the row scale m `[out]` and adapter_bias `[out]` of row t's adapter at each
site; rows without an adapter get x W + bias, and where an adapter has no m or bias, m = 1 and
nothing is added. All sites that share x (q, k, v; gate, up) are columns of one W and go together.

Legend: T rows, I in, O out over all sites. x_TI `[T, I]`, W `[I, O]`, bias_O `[O]`, y_TO `[T, O]`
and the pool have one float dtype; s and all sums are float32.

Per step, once: `create_segments` from the slot of each row, and for the tail form
`create_tail_pages`. Per layer and group of sites: `adapted_linear`. Nothing here waits for the
device or depends on how many slots there are, so a captured graph serves every mixture.

Forms, which compute the same up to rounding:

    pair   base GEMM (cuBLAS), `lora_shrink`, `lora_expand_`: any batch; with PDL the expand kernel
           starts beside the shrink kernel and fetches B before it waits for h
    fused  base GEMM, `lora_fused_`: one launch that reads A once per block of columns; few rows
    tail   `lora_shrink`, `lora_tail`: the base GEMM in Triton with B as its K-tail; small batches
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from weft_kernels.cuda.lora_expand import lora_expand_
from weft_kernels.cuda.lora_fused import lora_fused_
from weft_kernels.cuda.lora_shrink import lora_shrink, num_planes, shrink_config
from weft_kernels.cuda.lora_sites import SiteGroup
from weft_kernels.cuda.lora_tail import lora_tail
from weft_kernels.cuda.pages import PageTable
from weft_kernels.cuda.segments import Segments
from weft_kernels.cuda.tail_pages import TailPages
from weft_kernels.linear import LinearWeight

FORMS = ("pair", "fused", "tail")

# Not measured: up to here a second launch should cost more than A from the L2 cache several times.
# For 4 rows of rank 16 and 4096 columns of x, one program reads 128 KiB of it.
_MAX_FUSED_ROWS = 4
_MAX_FUSED_IN = 4096


def choose_form(num_rows: int, num_in: int) -> str:
    """ "fused" for few rows and a narrow input, "pair" otherwise; "tail" only when asked for."""
    is_small = num_rows <= _MAX_FUSED_ROWS and num_in <= _MAX_FUSED_IN
    return "fused" if is_small else "pair"


@cache
def has_pdl(device: torch.device) -> bool:
    """Programmatic dependent launch came with sm_90; the interpreter has none."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def adapted_linear(
    x_TI: Tensor,
    weight: LinearWeight,
    bias_O: Tensor | None,
    group: SiteGroup,
    table: PageTable,
    segments: Segments,
    *,
    form: str | None = None,
    tail_pages: TailPages | None = None,
) -> Tensor:
    """y_TO of all sites of the group, in one of `FORMS`, `choose_form`'s by default.

    The tail form needs the step's `tail_pages` and a dense weight: it copies a packed one.
    """
    if form != "tail":
        y_TO = weight.apply(x_TI, bias_O)
        add_lora_(y_TO, x_TI, group, table, segments, bias_O=bias_O, form=form)
        return y_TO
    if tail_pages is None:
        raise ValueError("the tail form needs tail_pages")
    use_pdl = has_pdl(x_TI.device)
    config = shrink_config(group, segments)
    h_PGRC = lora_shrink(x_TI, group, table, segments, use_pdl=use_pdl, config=config)
    return lora_tail(
        x_TI, weight.dense().contiguous(), h_PGRC, num_planes(group.num_in, config),
        group, table, segments, tail_pages, bias_O=bias_O, use_pdl=use_pdl,
    )  # fmt: skip


def add_lora_(
    y_TO: Tensor,
    x_TI: Tensor,
    group: SiteGroup,
    table: PageTable,
    segments: Segments,
    *,
    bias_O: Tensor | None = None,
    form: str | None = None,
) -> None:
    """Make y, which comes in as x W + bias, the adapted linear's. Rows without an adapter are not
    touched. bias_O is needed where the table has row scales, which do not apply to it."""
    form = choose_form(segments.num_rows, group.num_in) if form is None else form
    if form == "fused":
        lora_fused_(y_TO, x_TI, group, table, segments, bias_O=bias_O)
        return
    if form != "pair":
        raise ValueError(f"form must be pair or fused, not {form!r}")
    use_pdl = has_pdl(x_TI.device)
    config = shrink_config(group, segments)
    h_PGRC = lora_shrink(x_TI, group, table, segments, use_pdl=use_pdl, config=config)
    lora_expand_(
        y_TO, h_PGRC, num_planes(group.num_in, config), group, table, segments,
        bias_O=bias_O, use_pdl=use_pdl,
    )  # fmt: skip
