"""Where the pages of the adapters in slots lie: what every LoRA kernel reads its weights through.

A page is 8 rank rows of one site: A `[8, in]` and B `[8, out]`, each contiguous, anywhere in the
pool. An adapter at a site has a list of pages in any order; rank row r is row r % 8 of page r // 8.
Rows of the last page past the true rank may hold anything, NaN included: kernels do not use them.

`PageTable` is the device's side, of fixed addresses, so that a captured graph sees every change.
The host's side is `slot_pages`, which alone writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAGE_ROWS = 8

ABSENT = -1  # an [out] vector that an adapter does not have


@dataclass(frozen=True, slots=True)
class PageTable:
    """The pages of every (site, slot), on the device; offsets count elements of `memory`.

    memory: the pool, flat, float. ranks, true_ranks, first_pages: int32 `[num_sites, num_slots]`,
    the rank rounded up to whole pages (0: the adapter does not touch the site), the rank itself,
    and the first entry of the site's page list. a_offsets, b_offsets: int64 `[num_entries]`, where
    a page's A and B start. scales: float32 `[num_sites, num_slots]`. row_scales, biases: int64
    `[num_sites, num_slots]`, where an `[out]` row scale and bias start, -1 for none; the whole
    tensor is None where no adapter may have one. max_rank: no rank is above it.
    """

    memory: Tensor
    ranks: Tensor
    true_ranks: Tensor
    first_pages: Tensor
    a_offsets: Tensor
    b_offsets: Tensor
    scales: Tensor
    row_scales: Tensor | None
    biases: Tensor | None
    max_rank: int

    @property
    def num_sites(self) -> int:
        return self.ranks.shape[0]

    @property
    def num_slots(self) -> int:
        return self.ranks.shape[1]


def check_page_table(table: PageTable, shapes: Sequence[tuple[int, int]]) -> None:
    """ValueError when a kernel that follows the table could read what is not a page of the pool.

    Copies the whole table to the host.
    """
    size = (len(shapes), table.num_slots)
    for name in ("ranks", "true_ranks", "first_pages", "scales", "row_scales", "biases"):
        values = getattr(table, name)
        if values is None and name in ("row_scales", "biases"):
            continue
        dtype = {"scales": torch.float32, "row_scales": torch.int64, "biases": torch.int64}
        if tuple(values.shape) != size or values.dtype != dtype.get(name, torch.int32):
            raise ValueError(f"{name} is {values.dtype} {tuple(values.shape)}, of {size} expected")
        if not values.is_contiguous() or values.device != table.memory.device:
            raise ValueError(f"{name} must be contiguous and on the pool's device")
    if not bool(torch.isfinite(table.scales).all()):
        raise ValueError("a scale is not finite")
    ranks, true_ranks = table.ranks.cpu(), table.true_ranks.cpu()
    if bool(((true_ranks < 0) | (true_ranks > table.max_rank)).any()):
        raise ValueError(f"a rank is not in 0 .. {table.max_rank}")
    if not torch.equal((true_ranks + PAGE_ROWS - 1) // PAGE_ROWS * PAGE_ROWS, ranks):
        raise ValueError("a padded rank is not the true rank in whole pages")
    _check_offsets(table, shapes, ranks)


def _check_offsets(table: PageTable, shapes: Sequence[tuple[int, int]], ranks: Tensor) -> None:
    size, num_entries = table.memory.numel(), len(table.a_offsets)
    if table.b_offsets.shape != table.a_offsets.shape:
        raise ValueError("a page has an A and a B: a_offsets and b_offsets differ in length")
    first_pages = table.first_pages.cpu()
    for site, slot in ranks.nonzero().tolist():
        first, num_pages = int(first_pages[site, slot]), int(ranks[site, slot]) // PAGE_ROWS
        if first < 0 or first + num_pages > num_entries:
            raise ValueError(f"the page list of slot {slot} at site {site} leaves the table")
        pages = slice(first, first + num_pages)
        for offsets, width in zip((table.a_offsets, table.b_offsets), shapes[site], strict=True):
            for offset in offsets[pages].tolist():
                if offset % PAGE_ROWS or not 0 <= offset <= size - PAGE_ROWS * width:
                    raise ValueError(f"slot {slot} at site {site} has a page at {offset}")
    for vectors in (table.row_scales, table.biases):
        if vectors is None:
            continue
        for site, slot in (vectors != ABSENT).nonzero().tolist():
            offset = int(vectors[site, slot])
            if not 0 <= offset <= size - shapes[site][1]:
                raise ValueError(f"slot {slot} at site {site} has an [out] vector at {offset}")
