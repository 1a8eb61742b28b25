"""The adapters of the running batch in slots: columns of a page table on the device.

No weights are copied: kernels follow a row's slot to the pages in the pool. An adapter that enters
has one column rewritten, whole, from what was packed when it was loaded. One that leaves keeps its
column for as long as its pages are in the pool and nobody needs the slot, in case it comes back; no
row can name it meanwhile, because slots are only given out for adapters that running requests hold.

A site's index in the table is a plain number; those of a layer's experts follow each other, so that
a kernel finds an expert's as `first + expert`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_adapters.placement import PooledSite
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.sites import ATTENTION_PROJECTIONS, INPUTS, ROUTER, BaseSpec, Site
from weft_kernels.cuda.expert_lora import ExpertLora
from weft_kernels.cuda.lora import adapted_linear
from weft_kernels.cuda.lora_sites import SiteGroup, create_site_group
from weft_kernels.cuda.page_columns import PageColumn, PageLists
from weft_kernels.cuda.pages import ABSENT, PageTable
from weft_kernels.cuda.segments import Segments, create_segments
from weft_kernels.cuda.slot_pages import create_page_table
from weft_kernels.linear import LinearWeight

# what the adapters of a batch reach: a step launches nothing for sites beyond that. The last is all
# sites with row scales and biases, which kernels look for only there.
NOTHING, ATTENTION, MLP, EVERYTHING, VECTORS = range(5)


def _reach_of(projection: str) -> int:
    if projection in ATTENTION_PROJECTIONS:
        return ATTENTION
    return EVERYTHING if projection == ROUTER else MLP


@dataclass(frozen=True, slots=True)
class _Sites:
    """Where the base's sites are in the table; `groups[layer, first projection]` share an input,
    `experts[layer]` are the first experts' sites of gate, up and down."""

    index: Mapping[Site, int]
    shapes: Sequence[tuple[int, int]]
    groups: Mapping[tuple[int, str], SiteGroup]
    experts: Mapping[int, tuple[int, int, int]]


def _create_sites(base: BaseSpec, device: torch.device) -> _Sites:
    index: dict[Site, int] = {}
    groups: dict[tuple[int, str], SiteGroup] = {}
    experts: dict[int, tuple[int, int, int]] = {}

    def add(sites: Iterable[Site]) -> list[int]:
        return [index.setdefault(site, len(index)) for site in sites]

    for layer in range(base.num_layers):
        for names in INPUTS:
            sites = [Site(layer, name) for name in names]
            if base.has(sites[0]):
                shapes = [base.shape(site) for site in sites]
                groups[layer, names[0]] = create_site_group(
                    add(sites), shapes[0][0], [num_out for _, num_out in shapes], device
                )
        if base.is_moe(layer):
            gate, up, down = (
                add(Site(layer, name, expert) for expert in range(base.num_experts))[0]
                for name in ("gate_proj", "up_proj", "down_proj")
            )
            experts[layer] = (gate, up, down)
    return _Sites(index, [base.shape(site) for site in index], groups, experts)


@dataclass(frozen=True, slots=True)
class SlotBatch:
    """A step's adapters: slots_T int32 `[T]`, -1 for none, and its segments; None where no row has
    one."""

    reach: int
    slots_T: Tensor
    segments: Segments | None
    _table: PageTable
    _sites: _Sites

    def linear(
        self,
        x_TI: Tensor,
        weight: LinearWeight,
        bias_O: Tensor | None,
        layer: int,
        projections: tuple[str, ...],
        widths: Sequence[int],
    ) -> Tensor:
        """See `AdapterBatch`."""
        if self.segments is None or self.reach < _reach_of(projections[0]):
            return weight.apply(x_TI, bias_O)
        group = self._sites.groups[layer, projections[0]]
        return adapted_linear(x_TI, weight, bias_O, group, self._table, self.segments)

    def experts(self, layer: int) -> ExpertLora | None:
        if self.reach < MLP:
            return None
        return ExpertLora(self._table, *self._sites.experts[layer], self.slots_T)


def _starts(offsets: Iterable[int | None]) -> NDArray[np.int64]:
    found = [ABSENT if offset is None else offset for offset in offsets]
    return np.array(found, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a load leaves for the step that first uses the adapter."""

    column: PageColumn
    reach: int


class SlotAdapters:
    """Says which row of a batch uses which slot. Made before the pool's first load."""

    def __init__(self, base: BaseSpec, pool: PagePool, num_slots: int, max_rank: int) -> None:
        self._pool = pool
        # all that a batch of this base can have
        widest = EVERYTHING if base.moe_layers else MLP
        self.reaches = (*range(widest + 1), VECTORS)
        # those that launch every kernel between them
        self.widest_reaches = (widest, VECTORS)
        self._sites = _create_sites(base, pool.device)
        self._pages = create_page_table(
            pool.memory, self._sites.shapes, [None] * num_slots, max_rank=max_rank,
            has_row_scales=True, has_biases=True,
        )  # fmt: skip
        # the same memory, without what a batch below VECTORS has none of
        self._plain_table = replace(self._pages.table, row_scales=None, biases=None)
        pool.prepare_with(self._prepare)
        self._holders: list[PooledAdapter | None] = [None] * num_slots
        self._reaches = [NOTHING] * num_slots
        # of the held adapters alone; the one that came last into use is the last
        self._slot_of: dict[str, int] = {}
        self._idle: list[int] = list(range(num_slots))

    def order_key(self, digest: str | None, num_rows: int) -> tuple[bool, str]:
        """Rows of requests sorted by this key have those of an adapter side by side."""
        return (digest is not None, digest or "")

    def update(self, adapters: Mapping[str, PooledAdapter]) -> None:
        """`adapters` are all that running requests hold, by digest.

        ValueError where there are more of them than slots.
        """
        if len(adapters) > len(self._holders):
            raise ValueError(f"{len(adapters)} adapters do not fit {len(self._holders)} slots")
        for digest in [
            digest for digest in self._slot_of if not self._is_in_slot(digest, adapters)
        ]:
            self._idle.append(self._slot_of.pop(digest))
        missing = [adapter for digest, adapter in adapters.items() if digest not in self._slot_of]
        if not missing:
            return
        self._clear_stale()
        for adapter in missing:
            slot = self._try_find(adapter)
            if slot is None:
                slot = self._find_idle()
                self._write(slot, adapter)
            self._idle.remove(slot)
            self._slot_of[adapter.digest] = slot

    def _is_in_slot(self, digest: str, adapters: Mapping[str, PooledAdapter]) -> bool:
        holder = self._holders[self._slot_of[digest]]
        assert holder is not None
        return digest in adapters and adapters[digest].load_number == holder.load_number

    def _clear_stale(self) -> None:
        """Empty the idle slots of adapters whose pages may be others' by now: their entries are
        counted, and the table has room for as many as there are pages."""
        for slot in self._idle:
            holder = self._holders[slot]
            if holder is not None and self._pool.get(holder.digest) is not holder:
                self._write(slot, None)

    def _try_find(self, adapter: PooledAdapter) -> int | None:
        """The idle slot that the adapter left."""
        for slot in self._idle:
            holder = self._holders[slot]
            if holder is not None and holder.load_number == adapter.load_number:
                return slot
        return None

    def _find_idle(self) -> int:
        """An empty slot, else the one that has been idle for longest."""
        empty = (slot for slot in self._idle if self._holders[slot] is None)
        return next(empty, self._idle[0])

    def _prepare(self, sites: Mapping[Site, PooledSite]) -> _Prepared:
        """Called by the thread that loads; reads nothing that a step changes."""
        index, pooled = self._sites.index, sites.values()
        # lists of numbers: thousands of objects would have the garbage collector stop all threads
        offsets = [run.offset for own in pooled for run in own.runs]
        num_rows = [run.num_rows for own in pooled for run in own.runs]
        lists = PageLists(
            sites=np.array([index[site] for site in sites], dtype=np.int64),
            ranks=np.array([own.rank for own in pooled], dtype=np.int64),
            scales=np.array([own.scale for own in pooled], dtype=np.float32),
            num_runs=np.array([len(own.runs) for own in pooled], dtype=np.int64),
            runs=np.array([offsets, num_rows], dtype=np.int64).T,
            row_scales=_starts(own.row_scale for own in pooled),
            biases=_starts(own.bias for own in pooled),
        )
        reach = max((_reach_of(site.projection) for site in sites), default=NOTHING)
        if (lists.row_scales != ABSENT).any() or (lists.biases != ABSENT).any():
            reach = VECTORS
        return _Prepared(self._pages.form.pack(lists), reach)

    def _write(self, slot: int, adapter: PooledAdapter | None) -> None:
        if adapter is None:
            self._pages.set(slot, None)
            self._holders[slot], self._reaches[slot] = None, NOTHING
            return
        prepared = adapter.prepared
        if not isinstance(prepared, _Prepared):
            raise ValueError(f"adapter {adapter.digest} was not loaded for these slots")
        self._pages.set(slot, prepared.column)
        self._holders[slot], self._reaches[slot] = adapter, prepared.reach

    def slots(self, row_digests: Sequence[str | None]) -> tuple[list[int], int]:
        """Each row's slot, and what the rows' adapters reach; KeyError for an adapter that was not
        in the last `update`."""
        used = {digest for digest in row_digests if digest is not None}
        slot_of: dict[str | None, int] = {digest: self._slot_of[digest] for digest in used}
        reach = max((self._reaches[slot] for slot in slot_of.values()), default=NOTHING)
        slot_of[None] = -1
        return [slot_of[digest] for digest in row_digests], reach

    def create_device_batch(self, slots_T: Tensor, reach: int) -> SlotBatch:
        """For slots on the device, int32 `[T]`. Nothing here waits for the device."""
        table = self._pages.table if reach == VECTORS else self._plain_table
        segments = create_segments(slots_T, table.num_slots) if reach != NOTHING else None
        return SlotBatch(reach, slots_T, segments, table, self._sites)

    def create_batch(self, row_digests: Sequence[str | None]) -> SlotBatch:
        """`row_digests[t]` is row t's adapter, one of those of the last `update`."""
        slots, reach = self.slots(row_digests)
        slots_T = torch.tensor(slots, dtype=torch.int32).to(self._pool.device)
        return self.create_device_batch(slots_T, reach)

    def integrity(self) -> None:
        """AssertionError when a slot is lost or shared, ValueError when the table on the device is
        not what was written. Copies the table: not for steps."""
        taken = sorted([*self._idle, *self._slot_of.values()])
        assert taken == list(range(len(self._holders))), "a slot is lost or shared"
        self._pages.check()
