"""The adapters of the running batch where the page pool has them: no weights are copied.

A slot is a table of page addresses, built when the adapter is loaded, by the thread that does, and
used for as long as running requests hold it: until then its pages stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from weft_adapters.placement import PooledSite
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.sites import INPUTS, ROUTER, BaseSpec, Site
from weft_kernels.linear import LinearWeight
from weft_kernels.moe import PairAdapters, Pairs
from weft_kernels.native.binding import PART, VECTORS
from weft_kernels.native.layers import LayerAdapters
from weft_kernels.native.linear import NativeLinear
from weft_kernels.native.lora import LoraRows, PairRows, SlotParts

# the first projections of the inputs that `LayerAdapters` names
_LAYER_INPUTS = ("q_proj", "o_proj", "gate_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class InPlaceBatch(LayerAdapters):
    """A step's adapters: which rows use what; `first_inputs[layer, first projection]`."""

    first_inputs: Mapping[tuple[int, str], int]
    _layers_with_experts: frozenset[int]
    _layers_with_routers: frozenset[int]

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
        is_idle = projections[0] == ROUTER and layer not in self._layers_with_routers
        if self.rows.is_empty or is_idle:
            return weight.apply(x_TI, bias_O)
        index = self.first_inputs[layer, projections[0]]
        if isinstance(weight, NativeLinear):
            return self.rows.linear(x_TI, weight, bias_O, index)
        y_TO = weight.apply(x_TI, bias_O)
        self.rows.add_(y_TO, x_TI, index, bias_O)
        return y_TO

    def experts(self, layer: int) -> InPlaceExperts | None:
        if self.rows.is_empty or layer not in self._layers_with_experts:
            return None
        gate_up, down = (self.first_inputs[layer, name] for name in ("gate_proj", "down_proj"))
        return InPlaceExperts(self.rows, gate_up, down)


@dataclass(frozen=True, slots=True)
class InPlaceExperts:
    """The adapters of one layer's experts: the inputs of its first expert."""

    rows: LoraRows
    gate_up: int
    down: int

    def for_pairs(self, pairs: Pairs, num_experts: int) -> PairAdapters:
        rows = self.rows.for_pairs(pairs.expert_TK, pairs.position_TK, num_experts)
        return _InPlacePairs(rows, self.gate_up, self.down)


@dataclass(frozen=True, slots=True)
class _InPlacePairs:
    rows: PairRows
    gate_up: int
    down: int

    def add_gate_up_(self, gate_up_PF: Tensor, x_PH: Tensor) -> None:
        self.rows.add_(gate_up_PF, x_PH, self.gate_up)

    def add_down_(self, out_PH: Tensor, act_PF: Tensor) -> None:
        self.rows.add_(out_PH, act_PF, self.down)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a load leaves for the step that first uses the adapter."""

    parts: SlotParts
    layers_with_experts: frozenset[int]
    layers_with_routers: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Slot:
    load_number: int
    prepared: _Prepared


class InPlaceAdapters:
    """Says which row of a batch uses which pages. Made before the pool's first load."""

    def __init__(self, base: BaseSpec, pool: PagePool) -> None:
        self._base, self._pool = base, pool
        self._num_inputs = 0
        # of each site: its input, where its columns begin among those of the input, how many they
        # are, and the width of the input
        self._places: dict[Site, tuple[int, int, int, int]] = {}
        self._first_inputs: dict[tuple[int, str], int] = {}
        for layer in range(base.num_layers):
            self._add_inputs(layer)
        self._layer_inputs = np.array(
            [
                [self._first_inputs.get((layer, name), -1) for name in _LAYER_INPUTS]
                for layer in range(base.num_layers)
            ],
            dtype=np.int64,
        )
        self._slots: dict[str, _Slot] = {}
        self._last: tuple[list[str | None], InPlaceBatch] | None = None
        pool.prepare_with(self._prepare)

    def _add_inputs(self, layer: int) -> None:
        experts = range(self._base.num_experts)
        for names in INPUTS:
            if self._base.has(Site(layer, names[0])):
                inputs = [[Site(layer, name) for name in names]]
            elif experts and self._base.has(Site(layer, names[0], 0)):
                inputs = [[Site(layer, name, expert) for name in names] for expert in experts]
            else:
                continue
            self._first_inputs[layer, names[0]] = self._num_inputs
            for sites in inputs:
                self._add_input(sites)

    def _add_input(self, sites: Sequence[Site]) -> None:
        """One input; the columns of its sites lie side by side."""
        column = 0
        for site in sites:
            num_in, width = self._base.shape(site)
            self._places[site] = (self._num_inputs, column, width, num_in)
            column += width
        self._num_inputs += 1

    def order_key(self, digest: str | None, num_rows: int) -> tuple[bool, str]:
        """Rows of requests sorted by this key have those of an adapter side by side."""
        return (digest is not None, digest or "")

    def update(self, adapters: Mapping[str, PooledAdapter]) -> None:
        """`adapters` are all that running requests hold, by digest."""
        slots = self._slots
        gone = [digest for digest in slots if digest not in adapters]
        new = [
            adapter
            for digest, adapter in adapters.items()
            if digest not in slots or slots[digest].load_number != adapter.load_number
        ]
        for digest in gone:
            del slots[digest]
        for adapter in new:
            if not isinstance(adapter.prepared, _Prepared):
                raise ValueError(f"adapter {adapter.digest} was not loaded for these kernels")
            slots[adapter.digest] = _Slot(adapter.load_number, adapter.prepared)
        if gone or new:
            self._last = None

    def _prepare(self, sites: Mapping[Site, PooledSite]) -> _Prepared:
        """Called by the thread that loads; reads nothing that a step changes."""
        pooled = sites.values()
        # lists of numbers: thousands of objects would have the garbage collector stop all threads
        offsets = [run.offset for own in pooled for run in own.runs]
        num_rows = [run.num_rows for own in pooled for run in own.runs]
        starts, ranks = np.array([offsets, num_rows], dtype=np.int64)
        num_runs = np.array([len(own.runs) for own in pooled], dtype=np.int64)
        own_site = np.repeat(np.arange(len(sites)), num_runs)
        places = np.array([self._places[site] for site in sites], dtype=np.int64).reshape(-1, 4)
        inputs, columns, widths, num_in = places[own_site].T
        size = self._pool.dtype.itemsize
        parts = np.zeros(len(starts), dtype=PART)
        parts["a"] = self._pool.memory.data_ptr() + starts * size
        parts["b"] = parts["a"] + (ranks * num_in * size).astype(np.uint64)
        parts["num_ranks"], parts["column"], parts["width"] = ranks, columns, widths
        parts["scale"] = np.array([own.scale for own in pooled], dtype=np.float32)[own_site]
        by_input = np.lexsort((columns, inputs))
        counts = np.bincount(inputs, minlength=self._num_inputs)
        experts = frozenset(site.layer for site in sites if site.expert is not None)
        routers = frozenset(site.layer for site in sites if site.projection == ROUTER)
        slot = SlotParts(parts[by_input], counts, *self._vectors(sites))
        return _Prepared(slot, experts, routers)

    def _vectors(
        self, sites: Mapping[Site, PooledSite]
    ) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        """The row scales and biases by input, and how many sites of each have some."""
        own = [(site, p) for site, p in sites.items() if (p.row_scale, p.bias) != (None, None)]
        places = np.array([self._places[site] for site, _ in own], dtype=np.int64).reshape(-1, 4)
        inputs, columns, widths, _ = places.T
        vectors = np.zeros(len(own), dtype=VECTORS)
        vectors["row_scale"] = [self._address(pooled.row_scale) for _, pooled in own]
        vectors["bias"] = [self._address(pooled.bias) for _, pooled in own]
        vectors["column"], vectors["width"] = columns, widths
        by_input = np.argsort(inputs, kind="stable")
        return vectors[by_input], np.bincount(inputs, minlength=self._num_inputs)

    def _address(self, offset: int | None) -> int:
        """0 for none."""
        if offset is None:
            return 0
        return self._pool.memory.data_ptr() + offset * self._pool.dtype.itemsize

    def create_batch(self, row_digests: Sequence[str | None]) -> InPlaceBatch:
        """`row_digests[t]` is row t's adapter, one of those of the last `update`."""
        if self._last is not None and self._last[0] == row_digests:
            return self._last[1]  # most steps decode what the step before did
        used = sorted({digest for digest in row_digests if digest is not None})
        number: dict[str | None, int] = {digest: slot for slot, digest in enumerate(used)}
        number[None] = -1
        slots = [self._slots[digest].prepared for digest in used]
        rows = LoraRows([slot.parts for slot in slots], [number[d] for d in row_digests])
        experts = frozenset[int]().union(*(slot.layers_with_experts for slot in slots))
        routers = frozenset[int]().union(*(slot.layers_with_routers for slot in slots))
        batch = InPlaceBatch(rows, self._layer_inputs, self._first_inputs, experts, routers)
        self._last = (list(row_digests), batch)
        return batch
