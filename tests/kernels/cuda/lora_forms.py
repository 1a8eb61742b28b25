"""The adapted linear in each of its forms, by its operators, with poisoned workspaces."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tests.kernels.cuda.lora_cases import Case
from torch import Tensor

from weft_kernels.cuda.lora_expand import lora_expand_
from weft_kernels.cuda.lora_fused import lora_fused_
from weft_kernels.cuda.lora_shrink import create_planes, lora_shrink, num_planes
from weft_kernels.cuda.lora_tail import lora_tail
from weft_kernels.cuda.pages import PageTable
from weft_kernels.cuda.segments import Segments, create_segments
from weft_kernels.cuda.tail_pages import create_tail_pages

NAN = float("nan")
# small blocks, so that small cases cross them
CONFIG = {
    "BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_R": 16, "GEMV_K": 64, "GEMV_ROWS": 3,
    "SPLIT": 2, "RANK_SPLIT": 1, "num_warps": 4, "num_stages": 2,
}  # fmt: skip


def run(
    case: Case, form: str, device: torch.device, *,
    block_rows: int = 16, config: Mapping[str, int] = CONFIG, table: PageTable | None = None,
    segments: Segments | None = None,
) -> Tensor:  # fmt: skip
    """y with every workspace full of NaN before, and for the tail form y itself, too."""
    table = case.pages(device).table if table is None else table
    if segments is None:
        segments = create_segments(case.slots(device), table.num_slots, block_rows)
    x, group = case.x.to(device), case.group(device)
    bias = None if case.bias is None else case.bias.to(device)
    if form == "fused":
        y = case.base(device)
        lora_fused_(y, x, group, table, segments, bias_O=bias, config=config)
        return y
    planes = num_planes(group.num_in, config)
    h = create_planes(group, table, segments, config).fill_(NAN)
    lora_shrink(x, group, table, segments, out=h, config=config)
    if form == "pair":
        y = case.base(device)
        lora_expand_(y, h, planes, group, table, segments, bias_O=bias, config=config)
        return y
    y = torch.full((len(case.rows), group.num_out), NAN, dtype=x.dtype, device=device)
    pages = create_tail_pages(table, segments)
    return lora_tail(
        x, case.w.to(device), h, planes, group, table, segments, pages,
        bias_O=bias, out=y, config=config,
    )  # fmt: skip
