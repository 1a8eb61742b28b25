"""Adapted linear: one base GEMM, and each row's own low-rank adapter on top, for a mixed batch.

    y[t] = x[t] W + bias + s[a(t)] * (x[t] A[a(t)]^T) B[a(t)]        (LoRA, Hu et al. 2021)

where `a(t)` is the adapter of row t; rows without one get the base alone. Adapters keep their true
rank, rounded up to a page of 8 rank rows: those of one padded rank form a *rank group*. The rows of
a rank group are laid on grids of slots by rows, and every grid costs one batched GEMM for all sites
that share an input and one more for each of them, never one per adapter.

The operator knows slots, not adapters: who sits in which slot is the caller's business.

Legend: T rows of the batch, I in, O out, R padded rank, S slots, K rank rows of all sites that
share an input, N rows of a rank group, G slots of a grid, M rows of its fullest slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft_kernels.linear import LinearWeight

# in grids of up to so many slots, the product is added in the GEMM: measured on a CPU, a batched
# GEMM that accumulates is slower than one that does not by more than an addition takes, from 5 on
_FEW_SLOTS = 3
# runs of up to so many rows share one grid: decoding rows, and choices of one request
FEW_ROWS = 8


@dataclass(frozen=True, slots=True)
class PackedSite:
    """The adapters of one rank group at one site, by slot.

    a_SRI: `[S, R, I]`; b_SRO: `[S, R, O]`, B transposed and times the adapter's scale; one float
    dtype. A slot whose adapter does not touch the site holds zeros. Where sites share an input,
    `joint_SKI` `[S, K, I]` holds the A of all of them side by side and `a_SRI` is its part from row
    `first` on. Expert sites have the experts as second dimension of all three.
    """

    a_SRI: Tensor
    b_SRO: Tensor
    joint_SKI: Tensor | None = None
    first: int = 0


PackedSites = Mapping[int, PackedSite]
"""The packed tensors of one site by padded rank."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Some rows of a rank group, `[G, M]` by slot.

    slots: int64 `[G]`, None = all in their order; rows_N: int64, the batch rows, ordered by slot;
    grid_rows: int64 `[G * M]`, the batch row of each cell (row 0 where a cell is empty); cells_N:
    int64, the cell of each row. Where the rows lie side by side in the batch, `span` = (first,
    number) and nothing is scattered; where all slots are equally full, too (`is_even`), the span is
    the grid and nothing is gathered either.
    """

    num_slots: int
    slots: Tensor | None
    rows_N: Tensor
    grid_rows: Tensor
    cells_N: Tensor
    span: tuple[int, int] | None
    is_even: bool

    def select(self, packed: Tensor) -> Tensor:
        """The grid's slots of a packed tensor; a copy where they are not all."""
        if self.slots is not None:
            return packed.index_select(0, self.slots)
        return packed[: self.num_slots]


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The rows of a batch whose adapters share a padded rank: int64, in the order of the batch, and
    the grids that they are laid on."""

    rank: int
    num_slots: int
    rows_N: Tensor
    slots_N: Tensor
    grids: tuple[Grid, ...]


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """What one step's rows use; empty `groups` when no row has an adapter."""

    groups: tuple[RankGroup, ...] = field(default=())


def create_rank_group(
    rank: int, num_slots: int, rows: Sequence[int], slots: Sequence[int], device: torch.device
) -> RankGroup:
    """Lay rows on grids: runs of neighbours with one slot by their length, so that no cell is
    empty; the rows of short runs together, slot by slot, in the order of the slots."""
    few: dict[int, list[int]] = {}
    many: dict[int, list[tuple[int, int]]] = {}
    for first, size, slot in _runs(rows, slots):
        if size > FEW_ROWS:
            many.setdefault(size, []).append((first, slot))
        else:
            few.setdefault(slot, []).extend(range(first, first + size))
    grids = []
    if few:
        # unused slots are computed along while they are not more than the used ones: leaving them
        # out copies the others
        own = sorted(few) if 2 * len(few) < num_slots else range(num_slots)
        grids.append(_create_grid(num_slots, own, [few.get(s, []) for s in own], device))
    for size, runs in many.items():
        own_rows = [list(range(first, first + size)) for first, _ in runs]
        grids.append(_create_grid(num_slots, [slot for _, slot in runs], own_rows, device))
    return RankGroup(
        rank=rank,
        num_slots=num_slots,
        rows_N=torch.tensor(rows, dtype=torch.int64).to(device),
        slots_N=torch.tensor(slots, dtype=torch.int64).to(device),
        grids=tuple(grids),
    )


def _runs(rows: Sequence[int], slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first row, number of rows, slot) of neighbours that share a slot."""
    start = 0
    for i in range(1, len(rows) + 1):
        is_end = i == len(rows) or slots[i] != slots[start] or rows[i] != rows[i - 1] + 1
        if is_end:
            yield rows[start], i - start, slots[start]
            start = i


def _create_grid(
    num_slots: int, own: Sequence[int], rows_of: Sequence[list[int]], device: torch.device
) -> Grid:
    """`rows_of[i]` are the rows of slot `own[i]`; a slot may come twice."""
    fullest = max(len(rows) for rows in rows_of)
    rows = [row for part in rows_of for row in part]
    cells = [i * fullest + m for i, part in enumerate(rows_of) for m in range(len(part))]
    grid_rows = torch.zeros(len(own) * fullest, dtype=torch.int64)
    grid_rows[cells] = torch.tensor(rows, dtype=torch.int64)
    is_all = list(own) == list(range(num_slots))
    return Grid(
        num_slots=len(own),
        slots=None if is_all else torch.tensor(list(own), dtype=torch.int64).to(device),
        rows_N=torch.tensor(rows, dtype=torch.int64).to(device),
        grid_rows=grid_rows.to(device),
        cells_N=torch.tensor(cells, dtype=torch.int64).to(device),
        span=_span(rows),
        is_even=len(cells) == len(grid_rows),
    )


def _span(rows: list[int]) -> tuple[int, int] | None:
    first = rows[0]
    return (first, len(rows)) if rows == list(range(first, first + len(rows))) else None


@dataclass(frozen=True, slots=True)
class Term:
    """One grid's part of some sites that share an input: `a_GIK`, and for each site its number, the
    first of its rank rows in K, and `b_GRO`."""

    grid: Grid
    a_GIK: Tensor
    outs: tuple[tuple[int, int, Tensor], ...]

    def add_(self, y_TO: Tensor, x_TI: Tensor, firsts: Sequence[int]) -> None:
        """Add to a batch tensor in place; `firsts[k]` is the first column of site k."""
        grid, num_slots = self.grid, self.grid.num_slots
        if grid.span is None or not grid.is_even:
            self._add_scattered_(y_TO, x_TI, firsts)
            return
        start, num_rows = grid.span
        each, ld = num_rows // num_slots, y_TO.stride(0)
        x_GMI = x_TI.narrow(0, start, num_rows).view(num_slots, each, x_TI.shape[1])
        h_GMK = torch.bmm(x_GMI, self.a_GIK)
        for k, first, b in self.outs:
            _, rank, width = b.shape
            at = y_TO.storage_offset() + start * ld + firsts[k]
            y = y_TO.as_strided((num_slots, each, width), (each * ld, ld, 1), at)
            h = h_GMK if h_GMK.shape[2] == rank else h_GMK.narrow(2, first, rank)
            if num_slots <= _FEW_SLOTS:
                y.baddbmm_(h, b)
            else:
                y.add_(torch.bmm(h, b))

    def _add_scattered_(self, y_TO: Tensor, x_TI: Tensor, firsts: Sequence[int]) -> None:
        grid = self.grid
        x_CI = x_TI.index_select(0, grid.grid_rows)
        h_GMK = torch.bmm(x_CI.view(grid.num_slots, -1, x_TI.shape[1]), self.a_GIK)
        for k, first, b in self.outs:
            delta = torch.bmm(h_GMK.narrow(2, first, b.shape[1]), b).view(-1, b.shape[2])
            delta = delta.index_select(0, grid.cells_N)
            y = y_TO.narrow(1, firsts[k], b.shape[2])
            if grid.span is None:
                y.index_add_(0, grid.rows_N, delta)  # no row is there twice
            else:
                y.narrow(0, *grid.span).add_(delta)


def create_terms(sites: Sequence[PackedSites], batch: LoraBatch) -> tuple[Term, ...]:
    """What a batch adds at sites that share an input, to be used by every step that runs the same
    rows on the same packed tensors. `sites[k]`: the packed tensors of site k, which all are parts
    of one joint tensor or none is."""
    terms = []
    for group in batch.groups:
        touched = [(k, site[group.rank]) for k, site in enumerate(sites) if group.rank in site]
        for grid in group.grids if touched else ():
            joint = touched[0][1].joint_SKI
            if joint is not None:
                outs = [(k, site.first, grid.select(site.b_SRO)) for k, site in touched]
                terms.append(Term(grid, grid.select(joint).transpose(1, 2), tuple(outs)))
                continue
            for k, site in touched:
                a_GIK = grid.select(site.a_SRI).transpose(1, 2)
                terms.append(Term(grid, a_GIK, ((k, 0, grid.select(site.b_SRO)),)))
    return tuple(terms)


def add_lora_(y_TO: Tensor, x_TI: Tensor, terms: Sequence[Term], widths: Sequence[int]) -> None:
    """Add the adapters' part of several sites that share one input, in place.

    y_TO `[T, sum of widths]`, rows may be strided; x_TI `[T, I]`; `widths[k]` columns are site k's.
    """
    firsts, first = [], 0
    for width in widths:
        firsts.append(first)
        first += width
    for term in terms:
        term.add_(y_TO, x_TI, firsts)


def adapted_linear(
    x_TI: Tensor,
    weight: LinearWeight,
    bias_O: Tensor | None,
    terms: Sequence[Term],
    widths: Sequence[int],
) -> Tensor:
    """`y = x W + bias`, then each row's adapter on every column slice that is a site of its own.

    x_TI `[T, I]`; weight I to O; bias_O `[O]` or None; `widths` cuts O into the fused projections
    (q, k, v; gate, up), whose adapters are in `terms`; y `[T, O]`.
    """
    y_TO = weight.apply(x_TI, bias_O)
    if terms:
        add_lora_(y_TO, x_TI, terms, widths)
    return y_TO
