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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft_kernels.linear import LinearWeight

# slots with up to so many rows share one grid: decoding rows, and choices of one request
_FEW_ROWS = 8


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

    slots: int64 `[G]`, None = the first G; rows_N: int64, the batch rows, ordered by slot;
    grid_rows: int64 `[G * M]`, the batch row of each cell (row 0 where a cell is empty); cells_N:
    int64, the cell of each row. Where the rows lie side by side in the batch, `span` = (first,
    stop) and nothing is scattered; where all slots are equally full, too (`is_even`), the span is
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
        """The grid's slots of a packed tensor; a copy where they are not the first."""
        if self.slots is None:
            return packed[: self.num_slots]
        return packed.index_select(0, self.slots)

    def take(self, x_TI: Tensor) -> Tensor:
        """The cells' rows of a batch tensor: `[G, M, I]`."""
        if self.is_even and self.span is not None:
            x = x_TI[self.span[0] : self.span[1]]
        else:
            x = x_TI.index_select(0, self.grid_rows)
        return x.view(self.num_slots, -1, x.shape[1])

    def add_product_(self, y_TO: Tensor, h_GMR: Tensor, b_GRO: Tensor) -> None:
        """Add `h b` to the rows of a batch tensor, in place; no row is there twice."""
        delta = torch.bmm(h_GMR, b_GRO).view(-1, b_GRO.shape[2])
        if not self.is_even:
            delta = delta.index_select(0, self.cells_N)
        if self.span is None:
            y_TO.index_add_(0, self.rows_N, delta)
        else:
            y_TO[self.span[0] : self.span[1]] += delta


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The rows of a batch whose adapters share a padded rank, ordered by slot: rows_N and slots_N
    int64, and the grids that they are laid on."""

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
    """Order `rows` by their `slots` and lay them on grids: one where the slots are about equally
    full, else one for the slots with few rows and one for each size of those with many."""
    order = sorted(range(len(rows)), key=slots.__getitem__)
    rows_of: dict[int, list[int]] = {}
    for i in order:
        rows_of.setdefault(slots[i], []).append(rows[i])
    fullest = max(len(own) for own in rows_of.values())
    sizes: dict[int, dict[int, list[int]]] = {}
    if fullest * num_slots <= 2 * len(rows) + num_slots:
        sizes[0] = rows_of
    else:
        for slot, own in rows_of.items():
            size = 0 if len(own) <= _FEW_ROWS else (len(own) - 1).bit_length()
            sizes.setdefault(size, {})[slot] = own
    return RankGroup(
        rank=rank,
        num_slots=num_slots,
        rows_N=torch.tensor([rows[i] for i in order], dtype=torch.int64).to(device),
        slots_N=torch.tensor([slots[i] for i in order], dtype=torch.int64).to(device),
        grids=tuple(_create_grid(num_slots, part, device) for part in sizes.values()),
    )


def _create_grid(num_slots: int, rows_of: Mapping[int, list[int]], device: torch.device) -> Grid:
    """The grid of some slots' rows, by slot. Unused slots are computed along while they are not
    twice as many as the used ones: leaving them out copies the others."""
    has_all = 3 * len(rows_of) >= num_slots
    places = {slot: slot if has_all else i for i, slot in enumerate(rows_of)}
    fullest = max(len(own) for own in rows_of.values())
    size = num_slots if has_all else len(rows_of)
    rows = [row for own in rows_of.values() for row in own]
    cells = [places[slot] * fullest + i for slot, own in rows_of.items() for i in range(len(own))]
    grid_rows = torch.zeros(size * fullest, dtype=torch.int64)
    grid_rows[cells] = torch.tensor(rows, dtype=torch.int64)
    return Grid(
        num_slots=size,
        slots=None if has_all else torch.tensor(list(rows_of), dtype=torch.int64).to(device),
        rows_N=torch.tensor(rows, dtype=torch.int64).to(device),
        grid_rows=grid_rows.to(device),
        cells_N=torch.tensor(cells, dtype=torch.int64).to(device),
        span=_span(rows),
        is_even=len(rows) == size * fullest,
    )


def _span(rows: list[int]) -> tuple[int, int] | None:
    first = rows[0]
    return (first, first + len(rows)) if rows == list(range(first, first + len(rows))) else None


def add_lora_(
    ys: Sequence[Tensor], x_TI: Tensor, sites: Sequence[PackedSites], batch: LoraBatch
) -> None:
    """Add the adapters' part of several sites that share one input, in place.

    ys[k]: `[T, O_k]`, rows may be strided; x_TI `[T, I]`; sites[k]: the packed tensors of site k,
    which all are parts of one joint tensor or none is.
    """
    for group in batch.groups:
        rank = group.rank
        touched = [(y, s[rank]) for y, s in zip(ys, sites, strict=True) if rank in s]
        if not touched:
            continue
        joint = touched[0][1].joint_SKI
        for grid in group.grids:
            x_GMI = grid.take(x_TI)
            if joint is not None:
                h_GMK = torch.bmm(x_GMI, grid.select(joint).transpose(1, 2))
            for y, site in touched:
                if joint is None:
                    h_GMR = torch.bmm(x_GMI, grid.select(site.a_SRI).transpose(1, 2))
                else:
                    h_GMR = h_GMK[:, :, site.first : site.first + rank]
                grid.add_product_(y, h_GMR, grid.select(site.b_SRO))


def adapted_linear(
    x_TI: Tensor,
    weight: LinearWeight,
    bias_O: Tensor | None,
    sites: Sequence[PackedSites],
    widths: Sequence[int],
    batch: LoraBatch,
) -> Tensor:
    """`y = x W + bias`, then each row's adapter on every column slice that is a site of its own.

    x_TI `[T, I]`; weight I to O; bias_O `[O]` or None; `widths` cuts O into the fused projections
    (q, k, v; gate, up), `sites[k]` holds the adapters of slice k; y `[T, O]`.
    """
    y_TO = weight.apply(x_TI, bias_O)
    if batch.groups and any(sites):
        add_lora_(torch.split(y_TO, list(widths), dim=1), x_TI, sites, batch)
    return y_TO
