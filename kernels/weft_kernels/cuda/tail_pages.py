"""The pages of B that a step's rows use, site by site: what the K-tail form walks along.

For every site the runs' pages one behind the other, run by run, so that a loop over them has loads
that do not depend on each other. Built once per step for all sites by one launch, without host
synchronisation; only the entries that are in use are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weft_kernels.cuda.aot import AotVariant
from weft_kernels.cuda.pages import PAGE_ROWS, PageTable
from weft_kernels.cuda.segments import Segments

_PAGE_ROWS = tl.constexpr(PAGE_ROWS)


@dataclass(frozen=True, slots=True)
class TailPages:
    """offsets: int64 `[num_sites, E]`, where B of a page starts; codes: int32 `[num_sites, E]`,
    (run * pages_per_run + page) * 8 + live rows - 1; scales: float32 `[num_sites, E]`; firsts:
    int32 `[num_sites, R + 1]`, each run's first entry and the end of the last."""

    offsets: Tensor
    codes: Tensor
    scales: Tensor
    firsts: Tensor
    pages_per_run: int


def create_tail_pages(
    table: PageTable, segments: Segments, num_sites: int | None = None
) -> TailPages:
    """For the sites 0 .. num_sites - 1 of the table, all by default."""
    num_sites = table.num_sites if num_sites is None else num_sites
    if not 0 < num_sites <= table.num_sites or segments.num_slots != table.num_slots:
        raise ValueError(
            f"{num_sites} sites and {segments.num_slots} slots do not fit a table of "
            f"{table.num_sites} sites and {table.num_slots} slots"
        )
    pages_per_run = table.max_rank // PAGE_ROWS
    size = (num_sites, max(segments.max_runs, 1) * pages_per_run)
    device = table.memory.device
    pages = TailPages(
        offsets=torch.empty(size, dtype=torch.int64, device=device),
        codes=torch.empty(size, dtype=torch.int32, device=device),
        scales=torch.empty(size, dtype=torch.float32, device=device),
        firsts=torch.empty((num_sites, segments.max_runs + 1), dtype=torch.int32, device=device),
        pages_per_run=pages_per_run,
    )
    fill_tail_pages_(pages, table, segments)
    return pages


def fill_tail_pages_(pages: TailPages, table: PageTable, segments: Segments) -> None:
    """Queue the building of a step's pages in their place."""
    if segments.max_runs == 0:
        return
    _tail_pages_kernel[(pages.firsts.shape[0],)](
        segments.run_slots, table.true_ranks, table.first_pages, table.b_offsets, table.scales,
        pages.offsets, pages.codes, pages.scales, pages.firsts,
        segments.max_runs, table.num_slots, pages.offsets.shape[1],
        PAGES_PER_RUN=pages.pages_per_run, BLOCK_RUNS=triton.next_power_of_2(segments.max_runs),
        num_warps=4, num_stages=2,
    )  # fmt: skip


@triton.jit
def _tail_pages_kernel(
    run_slots_ptr: tl.tensor,
    true_ranks_ptr: tl.tensor,
    first_pages_ptr: tl.tensor,
    b_offsets_ptr: tl.tensor,
    table_scales_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    firsts_ptr: tl.tensor,
    max_runs: tl.tensor,
    num_slots: tl.tensor,
    max_entries: tl.tensor,
    PAGES_PER_RUN: tl.constexpr,
    BLOCK_RUNS: tl.constexpr,
) -> None:
    """One program a site."""
    site = tl.program_id(0)
    runs = tl.arange(0, BLOCK_RUNS)
    slots = tl.load(run_slots_ptr + runs, mask=runs < max_runs, other=-1)
    is_run = slots >= 0
    at = site * num_slots + slots
    ranks = tl.load(true_ranks_ptr + at, mask=is_run, other=0)
    first_pages = tl.load(first_pages_ptr + at, mask=is_run, other=0)
    scales = tl.load(table_scales_ptr + at, mask=is_run, other=0.0)
    num_pages = (ranks + _PAGE_ROWS - 1) // _PAGE_ROWS
    ends = tl.cumsum(num_pages, axis=0)
    first = site * (max_runs + 1)
    tl.store(firsts_ptr + first + runs + 1, ends, mask=runs < max_runs)
    tl.store(firsts_ptr + first, 0)
    entries = site.to(tl.int64) * max_entries + ends - num_pages
    for page in range(0, tl.max(num_pages)):
        mask = page < num_pages
        offsets = tl.load(b_offsets_ptr + first_pages + page, mask=mask, other=0)
        live = tl.minimum(ranks - page * _PAGE_ROWS, _PAGE_ROWS)
        codes = (runs * PAGES_PER_RUN + page) * _PAGE_ROWS + live - 1
        tl.store(offsets_ptr + entries + page, offsets, mask=mask)
        tl.store(codes_ptr + entries + page, codes, mask=mask)
        tl.store(scales_ptr + entries + page, scales, mask=mask)


def aot_variants() -> list[AotVariant]:
    """As many runs as the K-tail form is meant for."""
    inputs = ["run_slots_ptr", "true_ranks_ptr", "first_pages_ptr", "codes_ptr", "firsts_ptr"]
    return [
        AotVariant(
            name=f"tail_pages/runs{num_runs}",
            kernel=_tail_pages_kernel,
            signature=dict.fromkeys(inputs, "*i32")
            | dict.fromkeys(["b_offsets_ptr", "offsets_ptr"], "*i64")
            | dict.fromkeys(["table_scales_ptr", "scales_ptr"], "*fp32")
            | dict.fromkeys(["max_runs", "num_slots", "max_entries"], "i32"),
            constants={"PAGES_PER_RUN": 32, "BLOCK_RUNS": num_runs},
            divisible_by_16=[],
            num_warps=4,
            num_stages=2,
            needs_vector_loads=False,  # gathers of single numbers
        )
        for num_runs in (1, 16, 128)
    ]
