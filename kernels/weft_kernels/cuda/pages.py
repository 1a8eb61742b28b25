"""Where the pages of the adapters in slots lie: what every LoRA kernel reads its weights through.

A page is 8 rank rows of one site: A `[8, in]` and B `[8, out]`, each contiguous, anywhere in the
pool. An adapter at a site has a list of pages in any order; rank row r is row r % 8 of page r // 8.
Rows of the last page past the true rank may hold anything, NaN included: kernels do not use them.

`PageTable` is the device's side, of fixed addresses, so that a captured graph sees every change.
`SlotPages` is the host's side: it alone writes the table, one slot at a time. It knows offsets in
the pool, not digests or tenants; who sits in which slot is the caller's business. A change is
queued on the current stream: steps that were queued before it read the old table, later ones the
new one. The pages of an adapter that left must not be reused before the change is queued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PAGE_ROWS = 8

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_ABSENT = -1


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


@dataclass(frozen=True, slots=True)
class SitePages:
    """Where one site of an adapter lies in the pool.

    runs: (offset, number of rank rows) of rows that lie together, A rows first, then B rows; whole
    pages, in the order of the rank. row_scale, bias: offsets of `[out]` vectors. A site that only
    has a bias has rank 0 and no runs.
    """

    rank: int
    scale: float
    runs: Sequence[tuple[int, int]]
    row_scale: int | None = None
    bias: int | None = None

    @property
    def num_pages(self) -> int:
        return sum(num_rows for _, num_rows in self.runs) // PAGE_ROWS

    def page_offsets(self, num_in: int, num_out: int) -> tuple[list[int], list[int]]:
        """Where A and B of each page start."""
        a, b = [], []
        for offset, num_rows in self.runs:
            for row in range(0, num_rows, PAGE_ROWS):
                a.append(offset + row * num_in)
                b.append(offset + num_rows * num_in + row * num_out)
        return a, b


AdapterPages = Mapping[int, SitePages]
"""An adapter's sites by their index in the table; those that it does not touch are missing."""


@dataclass(slots=True)
class SlotPages:
    """Writes a page table. Made by `create_page_table`."""

    table: PageTable
    shapes: Sequence[tuple[int, int]]
    _slots: list[AdapterPages | None]
    _first_entries: list[int]
    _num_entries: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._num_entries = [0] * len(self._slots)

    def get(self, slot: int) -> AdapterPages | None:
        """What sits in a slot."""
        return self._slots[slot]

    def set(self, slot: int, adapter: AdapterPages | None) -> None:
        """Put an adapter into a slot, or nobody: the slot's whole column is rewritten.

        ValueError, and nothing changed, for an adapter that the table cannot hold.
        """
        if not 0 <= slot < len(self._slots):
            raise ValueError(f"slot {slot} is not one of the table's {len(self._slots)}")
        pages = {} if adapter is None else dict(adapter)
        for site, found in pages.items():
            self._check_site(site, found)
        num_entries = sum(found.num_pages for found in pages.values())
        first = self._try_find_entries(slot, num_entries)
        if first is None:
            others = sum(self._num_entries) - self._num_entries[slot]
            if others + num_entries > len(self.table.a_offsets):
                raise ValueError(
                    f"{num_entries} pages beside {others} of other slots are more than the "
                    f"table's {len(self.table.a_offsets)} entries"
                )
            first = self._compact(slot)
        self._slots[slot] = None if adapter is None else pages
        self._first_entries[slot], self._num_entries[slot] = first, num_entries
        self._write(slot)

    def _check_site(self, site: int, pages: SitePages) -> None:
        if not 0 <= site < len(self.shapes):
            raise ValueError(f"site {site} is not one of the table's {len(self.shapes)}")
        num_in, num_out = self.shapes[site]
        if not 0 <= pages.rank <= self.table.max_rank:
            raise ValueError(
                f"the rank {pages.rank} at site {site} is not in 0 .. {self.table.max_rank}"
            )
        if any(num_rows <= 0 or num_rows % PAGE_ROWS for _, num_rows in pages.runs):
            raise ValueError(f"a run at site {site} does not hold whole pages of {PAGE_ROWS} rows")
        if pages.num_pages != -(-pages.rank // PAGE_ROWS):
            raise ValueError(f"{pages.num_pages} pages at site {site} for the rank {pages.rank}")
        spans = [(offset, rows * (num_in + num_out)) for offset, rows in pages.runs]
        if any(offset % PAGE_ROWS for offset, _ in spans):
            raise ValueError(f"a run at site {site} does not start at a multiple of {PAGE_ROWS}")
        for vector, targets in (
            (pages.row_scale, self.table.row_scales),
            (pages.bias, self.table.biases),
        ):
            if vector is not None and targets is None:
                raise ValueError(f"site {site} has an [out] vector that the table has no place for")
            if vector is not None:
                spans.append((vector, num_out))
        size = self.table.memory.numel()
        if any(offset < 0 or offset + length > size for offset, length in spans):
            raise ValueError(f"site {site} reaches beyond the pool's {size} elements")

    def _try_find_entries(self, slot: int, num_entries: int) -> int | None:
        """The first gap between the other slots' entries that is wide enough."""
        start = 0
        for first, size in sorted(
            (self._first_entries[s], self._num_entries[s])
            for s in range(len(self._slots))
            if s != slot and self._num_entries[s]
        ):
            if first - start >= num_entries:
                return start
            start = first + size
        return start if len(self.table.a_offsets) - start >= num_entries else None

    def _compact(self, slot: int) -> int:
        """Move all other slots' entries to the front; the first entry behind them."""
        start = 0
        for other in range(len(self._slots)):
            if other != slot and self._num_entries[other]:
                self._first_entries[other] = start
                start += self._num_entries[other]
        for other in range(len(self._slots)):
            if other != slot:
                self._write(other)
        return start

    def _write(self, slot: int) -> None:
        """The slot's column and entries from what the host knows, on the current stream."""
        table, adapter = self.table, self._slots[slot] or {}
        ranks, true_ranks, first_pages = ([0] * len(self.shapes) for _ in range(3))
        scales = [0.0] * len(self.shapes)
        row_scales, biases = ([_ABSENT] * len(self.shapes) for _ in range(2))
        a_offsets: list[int] = []
        b_offsets: list[int] = []
        for site, pages in adapter.items():
            first_pages[site] = self._first_entries[slot] + len(a_offsets)
            ranks[site], true_ranks[site] = pages.num_pages * PAGE_ROWS, pages.rank
            scales[site] = pages.scale
            row_scales[site] = _ABSENT if pages.row_scale is None else pages.row_scale
            biases[site] = _ABSENT if pages.bias is None else pages.bias
            a, b = pages.page_offsets(*self.shapes[site])
            a_offsets += a
            b_offsets += b
        device = table.memory.device
        entries = slice(self._first_entries[slot], self._first_entries[slot] + len(a_offsets))
        for offsets, entry_values in ((table.a_offsets, a_offsets), (table.b_offsets, b_offsets)):
            if entry_values:
                offsets[entries] = torch.tensor(entry_values, dtype=torch.int64).to(device)
        columns: list[tuple[Tensor | None, Sequence[float]]] = [
            (table.ranks, ranks),
            (table.true_ranks, true_ranks),
            (table.first_pages, first_pages),
            (table.scales, scales),
            (table.row_scales, row_scales),
            (table.biases, biases),
        ]
        for target, values in columns:
            if target is not None:
                target[:, slot] = torch.tensor(values, dtype=target.dtype).to(device)

    def check(self) -> None:
        """ValueError when the table on the device is not what the host wrote, or is malformed.

        Copies the whole table to the host: for tests and integrity checks, not for steps.
        """
        table = self.table
        check_page_table(table, self.shapes)
        for slot, adapter in enumerate(self._slots):
            for site, shape in enumerate(self.shapes):
                pages = (adapter or {}).get(site)
                found = [int(t[site, slot]) for t in (table.ranks, table.true_ranks)]
                rank = 0 if pages is None else pages.rank
                if found != [-(-rank // PAGE_ROWS) * PAGE_ROWS, rank]:
                    raise ValueError(f"slot {slot} has ranks {found} at site {site}, not {rank}")
                if pages is None:
                    continue
                first = int(table.first_pages[site, slot])
                entries = slice(first, first + pages.num_pages)
                a, b = pages.page_offsets(*shape)
                if table.a_offsets[entries].tolist() != a or table.b_offsets[entries].tolist() != b:
                    raise ValueError(
                        f"slot {slot} has other pages at site {site} than it was given"
                    )


def create_page_table(
    memory: Tensor,
    shapes: Sequence[tuple[int, int]],
    slots: Sequence[AdapterPages | None],
    *,
    max_rank: int,
    num_entries: int | None = None,
    has_row_scales: bool = False,
    has_biases: bool = False,
) -> SlotPages:
    """A table for the sites of `shapes` (in, out) and as many slots as `slots`, filled with them.

    memory: the pool, flat. num_entries: page-list entries, by default as many as the pool can hold
    pages of the narrowest site.
    """
    if memory.dim() != 1 or memory.dtype not in _FLOATS or not memory.is_contiguous():
        raise ValueError("the pool must be a flat, contiguous float32, float16 or bfloat16 tensor")
    if not shapes or not slots or max_rank < 1:
        raise ValueError("a page table needs a site, a slot and a max_rank of 1 or more")
    if num_entries is None:
        num_entries = max(1, memory.numel() // (PAGE_ROWS * min(sum(shape) for shape in shapes)))
    device, size = memory.device, (len(shapes), len(slots))

    def vectors(wanted: bool) -> Tensor | None:
        return torch.full(size, _ABSENT, dtype=torch.int64, device=device) if wanted else None

    table = PageTable(
        memory=memory,
        ranks=torch.zeros(size, dtype=torch.int32, device=device),
        true_ranks=torch.zeros(size, dtype=torch.int32, device=device),
        first_pages=torch.zeros(size, dtype=torch.int32, device=device),
        a_offsets=torch.zeros(num_entries, dtype=torch.int64, device=device),
        b_offsets=torch.zeros(num_entries, dtype=torch.int64, device=device),
        scales=torch.zeros(size, dtype=torch.float32, device=device),
        row_scales=vectors(has_row_scales),
        biases=vectors(has_biases),
        max_rank=-(-max_rank // PAGE_ROWS) * PAGE_ROWS,
    )
    pages = SlotPages(table, tuple(shapes), [None] * len(slots), [0] * len(slots))
    for slot, adapter in enumerate(slots):
        if adapter is not None:
            pages.set(slot, adapter)
    return pages


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
        for site, slot in (vectors != _ABSENT).nonzero().tolist():
            offset = int(vectors[site, slot])
            if not 0 <= offset <= size - shapes[site][1]:
                raise ValueError(f"slot {slot} at site {site} has an [out] vector at {offset}")
