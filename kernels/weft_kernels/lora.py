"""Adapted linear: one base GEMM, and each row's own low-rank adapter on top, for a mixed batch.

    y[t] = x[t] W + bias + s[a(t)] * (x[t] A[a(t)]^T) B[a(t)]        (LoRA, Hu et al. 2021)

where `a(t)` is the adapter of row t; rows without one get the base alone. Adapters keep their true
rank, rounded up to a page of 8 rank rows: those of one padded rank form a *rank group*, and a batch
runs one pair of batched GEMMs per rank group and site, never one per adapter.

The operator knows slots, not adapters: who sits in which slot is the caller's business.

Legend: T rows of the batch, I in, O out, R padded rank, S slots, N rows of a rank group, M rows of
the fullest slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from weft_kernels.linear import LinearWeight

# CUDA's grouped_mm sets up its groups in one block of 1024 threads
MAX_GROUPS_PER_CALL = 1023


@dataclass(frozen=True, slots=True)
class PackedSite:
    """The adapters of one rank group at one site, by slot.

    a_SRI: `[S, R, I]`; b_SRO: `[S, R, O]` (B transposed); scale_S: `[S]`; one float dtype. A slot
    whose adapter does not touch the site holds zeros.
    """

    a_SRI: Tensor
    b_SRO: Tensor
    scale_S: Tensor


PackedSites = Mapping[int, PackedSite]
"""The packed tensors of one site by padded rank."""


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The rows of a batch whose adapters share a padded rank, ordered by slot.

    rows_N, slots_N: int64, batch row and slot of each; ends_S: int32, cumulative row count by slot.
    The dense form, used when the slots are evenly filled, lays the rows on an `[S, M]` grid:
    grid_rows int64 `[S * M]` names the batch row of each cell (row 0 where a cell is empty) and
    cells_N int64 the cell of each row. It is None where padding would waste more than it saves.

    Where the rows lie side by side in the batch, `span` = (first, stop) and nothing is gathered or
    scattered; where the slots are filled evenly besides, the span is the grid (`is_even`).
    """

    rank: int
    num_slots: int
    rows_N: Tensor
    slots_N: Tensor
    ends_S: Tensor
    grid_rows: Tensor | None
    cells_N: Tensor | None
    span: tuple[int, int] | None
    is_even: bool

    def take(self, x_TI: Tensor) -> Tensor:
        """The group's rows of a batch tensor: `[N, I]`."""
        if self.span is None:
            return x_TI.index_select(0, self.rows_N)
        return x_TI[self.span[0] : self.span[1]]

    def take_grid(self, x_TI: Tensor) -> Tensor | None:
        """The group's rows on the grid: `[S, M, I]`; None in the ragged form."""
        if self.grid_rows is None:
            return None
        is_view = self.is_even and self.span is not None
        x = self.take(x_TI) if is_view else x_TI.index_select(0, self.grid_rows)
        return x.view(self.num_slots, -1, x.shape[1])

    def add_(self, y_TO: Tensor, delta_NO: Tensor) -> None:
        """Add to the group's rows of a batch tensor, in place; no row is there twice."""
        if self.span is None:
            y_TO.index_add_(0, self.rows_N, delta_NO)
        else:
            y_TO[self.span[0] : self.span[1]] += delta_NO


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """What one step's rows use; empty `groups` when no row has an adapter."""

    groups: tuple[RankGroup, ...] = field(default=())


def create_rank_group(
    rank: int, num_slots: int, rows: Sequence[int], slots: Sequence[int], device: torch.device
) -> RankGroup:
    """Order `rows` by their `slots` and lay them out; both forms as `RankGroup` says."""
    order = sorted(range(len(rows)), key=slots.__getitem__)
    counts = [0] * num_slots
    for slot in slots:
        counts[slot] += 1
    ends = torch.tensor(counts, dtype=torch.int64).cumsum(0)
    rows_N = torch.tensor([rows[i] for i in order], dtype=torch.int64)
    slots_N = torch.tensor([slots[i] for i in order], dtype=torch.int64)
    fullest = max(counts)
    grid_rows = cells_N = None
    if fullest * num_slots <= 2 * len(rows) + num_slots:
        starts = ends - torch.tensor(counts)
        cells_N = slots_N * fullest + torch.arange(len(rows)) - starts[slots_N]
        grid_rows = torch.zeros(num_slots * fullest, dtype=torch.int64)
        grid_rows[cells_N] = rows_N
        grid_rows, cells_N = grid_rows.to(device), cells_N.to(device)
    return RankGroup(
        rank=rank,
        num_slots=num_slots,
        rows_N=rows_N.to(device),
        slots_N=slots_N.to(device),
        ends_S=ends.to(device, torch.int32),
        grid_rows=grid_rows,
        cells_N=cells_N,
        span=_span(rows_N.tolist()),
        is_even=min(counts) == fullest,
    )


def _span(rows: list[int]) -> tuple[int, int] | None:
    first = rows[0]
    return (first, first + len(rows)) if rows == list(range(first, first + len(rows))) else None


def grouped_mm(x_NI: Tensor, w_GIO: Tensor, ends_G: Tensor) -> Tensor:
    """`y[n] = x[n] w[g]` for rows sorted by group: group g ends before row `ends_G[g]`.

    x_NI `[N, I]`, w_GIO `[G, I, O]`, ends_G int32 `[G]` with `ends_G[-1] == N`; y `[N, O]`.
    """
    whole = 16 // x_NI.element_size()
    num_in, num_out = w_GIO.shape[1:]
    if num_in % whole or num_out % whole:
        # torch takes rows of whole 16 bytes only; slow, but of a real base only a shared expert's
        # gate, one column wide, comes here
        x_NI = functional.pad(x_NI, (0, -num_in % whole))
        w_GIO = functional.pad(w_GIO, (0, -num_out % whole, 0, -num_in % whole))
        return grouped_mm(x_NI, w_GIO, ends_G)[:, :num_out]
    if w_GIO.shape[0] <= MAX_GROUPS_PER_CALL or x_NI.device.type == "cpu":
        return functional.grouped_mm(x_NI, w_GIO, offs=ends_G)
    return grouped_mm_in_calls(x_NI, w_GIO, ends_G, MAX_GROUPS_PER_CALL)


def grouped_mm_in_calls(x_NI: Tensor, w_GIO: Tensor, ends_G: Tensor, num_groups: int) -> Tensor:
    """As `grouped_mm`, in calls of at most `num_groups` groups; waits for the device."""
    outs = []
    start = 0
    for g in range(0, w_GIO.shape[0], num_groups):
        ends = ends_G[g : g + num_groups]
        stop = int(ends[-1])
        part = w_GIO[g : g + num_groups]
        if stop > start:
            outs.append(functional.grouped_mm(x_NI[start:stop], part, offs=ends - start))
        start = stop
    return torch.cat(outs) if outs else x_NI.new_zeros(0, w_GIO.shape[2])


def _lora_delta(x_TI: Tensor, site: PackedSite, group: RankGroup, x_grid: Tensor | None) -> Tensor:
    """The low-rank part of a rank group's rows: `[N, O]` in the order of `group.rows_N`."""
    a, b, scale = (t[: group.num_slots] for t in (site.a_SRI, site.b_SRO, site.scale_S))
    if x_grid is None or group.cells_N is None:
        h_NR = grouped_mm(group.take(x_TI), a.transpose(1, 2), group.ends_S)
        h_NR = h_NR * scale.index_select(0, group.slots_N)[:, None]
        return grouped_mm(h_NR, b, group.ends_S)
    h_SMR = torch.bmm(x_grid, a.transpose(1, 2)).mul_(scale[:, None, None])
    y_CO = torch.bmm(h_SMR, b).view(-1, b.shape[-1])
    return y_CO if group.is_even else y_CO.index_select(0, group.cells_N)


def add_lora_(
    ys: Sequence[Tensor], x_TI: Tensor, sites: Sequence[PackedSites], batch: LoraBatch
) -> None:
    """Add the adapters' part of several sites that share one input, in place.

    ys[k]: `[T, O_k]`, rows may be strided; x_TI `[T, I]`; sites[k]: the packed tensors of site k.
    """
    for group in batch.groups:
        touched = [(y, s[group.rank]) for y, s in zip(ys, sites, strict=True) if group.rank in s]
        if not touched:
            continue
        x_grid = group.take_grid(x_TI)
        for y, site in touched:
            group.add_(y, _lora_delta(x_TI, site, group, x_grid))


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
