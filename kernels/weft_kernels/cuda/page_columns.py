"""An adapter's column of the page table, prepared before it is known which slot it gets.

Whoever loads an adapter packs here all that its slot will need into one tensor on the host, checked
and never changed again. To put it into a slot is then one copy to the device and a few operations
there (`slot_pages`), which suits a step: nothing is looked up, and no memory of the host is written
that an earlier copy may still read.

The packed tensor, int32:

    sites    [N]     int64: those that the adapter touches
    vectors  [V, N]  int64: where row scales and biases start, of those that the table has
    offsets  [2, E]  where A and B of each page start, in units of 8 elements, or as int64 where the
                     pool has more than 2^34 elements
    rows     [4, N]  rank, true rank, first page counted from the adapter's own, scale (the bits of
                     a float32)

Legend: N sites of the adapter, E its pages, V 0 to 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_kernels.cuda.pages import ABSENT, PAGE_ROWS

_Ints = NDArray[np.int64]


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


AdapterPages = Mapping[int, SitePages]
"""An adapter's sites by their index in the table; those that it does not touch are missing."""


@dataclass(frozen=True, slots=True, eq=False)
class PageLists:
    """The same as arrays, which is how thousands of sites are best handed over.

    sites: int64 `[N]`, their indices. ranks: int64 `[N]`. scales: float32 `[N]`. num_runs: int64
    `[N]`; runs: int64 `[M, 2]`, each site's one after another. row_scales, biases: int64 `[N]`, -1
    for none.
    """

    sites: _Ints
    ranks: _Ints
    scales: NDArray[np.float32]
    num_runs: _Ints
    runs: _Ints
    row_scales: _Ints
    biases: _Ints

    @classmethod
    def of(cls, adapter: AdapterPages) -> PageLists:
        pages = adapter.values()
        runs = [run for own in pages for run in own.runs]
        return cls(
            sites=np.array(list(adapter), dtype=np.int64),
            ranks=np.array([own.rank for own in pages], dtype=np.int64),
            scales=np.array([own.scale for own in pages], dtype=np.float32),
            num_runs=np.array([len(own.runs) for own in pages], dtype=np.int64),
            runs=np.array(runs, dtype=np.int64).reshape(-1, 2),
            row_scales=np.array([_start(own.row_scale) for own in pages], dtype=np.int64),
            biases=np.array([_start(own.bias) for own in pages], dtype=np.int64),
        )

    @property
    def owners(self) -> _Ints:
        """Which of `sites`, by its place there, each run is of."""
        return np.repeat(np.arange(len(self.sites)), self.num_runs)

    @property
    def num_pages(self) -> _Ints:
        """Of each site."""
        rows = np.bincount(self.owners, weights=self.runs[:, 1], minlength=len(self.sites))
        return rows.astype(np.int64) // PAGE_ROWS

    def page_offsets(self, num_in: _Ints, num_out: _Ints) -> tuple[_Ints, _Ints]:
        """Where A and B of each page start, by the widths of the table's sites."""
        counts = self.runs[:, 1] // PAGE_ROWS
        run = np.repeat(np.arange(len(counts)), counts)
        row = (np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)) * PAGE_ROWS
        site = self.sites[self.owners[run]]
        start, num_rows = self.runs[run].T
        a = start + row * num_in[site]
        return a, start + num_rows * num_in[site] + row * num_out[site]


def _start(offset: int | None) -> int:
    """A negative offset is not ABSENT, and found to reach beyond the pool."""
    if offset is None:
        return ABSENT
    return offset if offset >= 0 else ABSENT - 1


# of the packed rows, and of the table's
RANK, TRUE_RANK, FIRST_PAGE, SCALE = range(NUM_ROWS := 4)


@dataclass(frozen=True, slots=True)
class PageColumn:
    """One adapter, ready for any slot of the tables of `form`. packed: int32, on the host, pinned
    where the table is on a CUDA device."""

    form: ColumnForm
    packed: Tensor
    num_sites: int
    num_entries: int

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `ColumnForm.split`."""
        return self.form.split(self.packed, self.num_sites, self.num_entries)


@dataclass(frozen=True, slots=True, eq=False)
class ColumnForm:
    """What the columns of one table look like. shapes: (in, out) of each site; num_elements: of the
    pool; max_rank: a multiple of 8."""

    shapes: Sequence[tuple[int, int]]
    num_elements: int
    max_rank: int
    has_row_scales: bool = False
    has_biases: bool = False
    is_pinned: bool = False
    _widths: _Ints = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_widths", np.array(self.shapes, dtype=np.int64).T)

    @property
    def num_vectors(self) -> int:
        return int(self.has_row_scales) + int(self.has_biases)

    @property
    def offset_dtype(self) -> torch.dtype:
        return torch.int32 if self.num_elements <= PAGE_ROWS << 31 else torch.int64

    def num_ints(self, num_sites: int, num_entries: int) -> int:
        """The length of a packed column."""
        offsets = 2 * num_entries * self.offset_dtype.itemsize // 4
        return (2 * (1 + self.num_vectors) + NUM_ROWS) * num_sites + offsets

    def split(
        self, packed: Tensor, num_sites: int, num_entries: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of a packed column: sites `[N]`, vectors `[V, N]`, offsets `[2, E]`, rows
        `[4, N]`."""
        start = 2 * (1 + self.num_vectors) * num_sites
        end = self.num_ints(num_sites, num_entries) - NUM_ROWS * num_sites
        wide = packed[:start].view(torch.int64).view(1 + self.num_vectors, num_sites)
        offsets = packed[start:end].view(self.offset_dtype).view(2, num_entries)
        return wide[0], wide[1:], offsets, packed[end:].view(NUM_ROWS, num_sites)

    def prepare(self, adapter: AdapterPages) -> PageColumn:
        """Pack an adapter, from any thread; ValueError for what the table cannot hold."""
        return self.pack(PageLists.of(adapter))

    def pack(self, found: PageLists) -> PageColumn:
        """See `prepare`."""
        num_pages = found.num_pages
        self._check(found, num_pages)
        a, b = found.page_offsets(*self._widths)
        size = (len(found.sites), len(a))
        packed = torch.empty(self.num_ints(*size), dtype=torch.int32, pin_memory=self.is_pinned)
        sites, vectors, offsets, rows = (part.numpy() for part in self.split(packed, *size))
        sites[:] = found.sites
        unit = PAGE_ROWS if offsets.dtype == np.int32 else 1
        offsets[0], offsets[1] = a // unit, b // unit
        rows[RANK], rows[TRUE_RANK] = num_pages * PAGE_ROWS, found.ranks
        rows[FIRST_PAGE] = np.cumsum(num_pages) - num_pages
        rows[SCALE] = found.scales.view(np.int32)
        own = [values for values, has in self._vectors_of(found) if has]
        for row, values in zip(vectors, own, strict=True):
            row[:] = values
        return PageColumn(self, packed, *size)

    def _vectors_of(self, found: PageLists) -> tuple[tuple[_Ints, bool], tuple[_Ints, bool]]:
        return (found.row_scales, self.has_row_scales), (found.biases, self.has_biases)

    def _check(self, found: PageLists, num_pages: _Ints) -> None:
        num_sites, (starts, num_rows) = len(self.shapes), found.runs.T
        bad = (found.sites < 0) | (found.sites >= num_sites)
        if bad.any():
            raise ValueError(f"site {found.sites[bad][0]} is not one of the table's {num_sites}")
        bad = (found.ranks < 0) | (found.ranks > self.max_rank)
        if bad.any():
            rank, site = found.ranks[bad][0], found.sites[bad][0]
            raise ValueError(f"the rank {rank} at site {site} is not in 0 .. {self.max_rank}")
        site_of_run = found.sites[found.owners]
        bad = (num_rows <= 0) | (num_rows % PAGE_ROWS != 0)
        if bad.any():
            raise ValueError(
                f"a run at site {site_of_run[bad][0]} does not hold whole pages of {PAGE_ROWS} rows"
            )
        bad = num_pages != -(-found.ranks // PAGE_ROWS)
        if bad.any():
            count, site, rank = (v[bad][0] for v in (num_pages, found.sites, found.ranks))
            raise ValueError(f"{count} pages at site {site} for the rank {rank}")
        bad = starts % PAGE_ROWS != 0
        if bad.any():
            raise ValueError(
                f"a run at site {site_of_run[bad][0]} does not start at a multiple of {PAGE_ROWS}"
            )
        self._check_reach(site_of_run, starts, num_rows * self._widths[:, site_of_run].sum(0))
        for values, has in self._vectors_of(found):
            own = values != ABSENT
            sites = found.sites[own]
            if len(sites) and not has:
                raise ValueError(
                    f"site {sites[0]} has an [out] vector that the table has no place for"
                )
            self._check_reach(sites, values[own], self._widths[1, sites])

    def _check_reach(self, sites: _Ints, starts: _Ints, sizes: _Ints) -> None:
        bad = (starts < 0) | (starts + sizes > self.num_elements)
        if bad.any():
            raise ValueError(
                f"site {sites[bad][0]} reaches beyond the pool's {self.num_elements} elements"
            )
