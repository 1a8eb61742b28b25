"""The adapters of the running batch, packed the way the batched GEMMs read them.

Pages in the pool are the adapters' home; this is a working copy of those in use, grouped by padded
rank and indexed by slot, changed only when the set in use changes. An adapter of several ranks has
a slot in the group of each. A slot given to another adapter is zeroed wherever that one touches
nothing, so that nothing of the one before can show through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft.engine.packed_vectors import (
    BatchVectors,
    PackedVectors,
    SiteVectors,
    copy_vectors,
    pack_vectors,
)
from weft.engine.rank_slots import RankSlots
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.sites import BaseSpec, Site
from weft_kernels.linear import LinearWeight
from weft_kernels.lora import (
    FEW_ROWS,
    LoraBatch,
    PackedSite,
    PackedSites,
    Term,
    adapted_linear,
    create_rank_group,
    create_terms,
)
from weft_kernels.moe import PackedExperts

_EXPERT_SITES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A step's adapters: `sites[layer, projection]` by padded rank, which rows use what, and the
    row scales and biases, None where no row has any."""

    sites: Mapping[tuple[int, str], PackedSites]
    lora: LoraBatch
    vectors: BatchVectors | None = None
    _terms: dict[tuple[int, tuple[str, ...]], tuple[Term, ...]] = field(default_factory=dict)

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
        terms = self._terms_at(layer, projections) if self.lora.groups else ()
        y_TO = adapted_linear(x_TI, weight, bias_O, terms, widths)
        if self.vectors is not None:
            self.vectors.apply_(y_TO, bias_O, (layer, projections[0]))
        return y_TO

    def experts(self, layer: int) -> PackedExperts | None:
        sites = self._sites_at(layer, _EXPERT_SITES) if self.lora.groups else [{}, {}, {}]
        vectors = None if self.vectors is None else self.vectors.experts(layer)
        if vectors is None and not any(sites):
            return None
        return PackedExperts(sites, self.lora, vectors)

    def _sites_at(self, layer: int, projections: tuple[str, ...]) -> list[PackedSites]:
        return [self.sites.get((layer, projection), {}) for projection in projections]

    def _terms_at(self, layer: int, projections: tuple[str, ...]) -> tuple[Term, ...]:
        """What the batch adds at sites that share an input; worked out once."""
        terms = self._terms.get((layer, projections))
        if terms is None:
            terms = create_terms(self._sites_at(layer, projections), self.lora)
            self._terms[layer, projections] = terms
        return terms


class ActiveSet:
    """Packs the adapters of each batch and says which row uses which slot."""

    def __init__(
        self, base: BaseSpec, pool: PagePool, dtype: torch.dtype, max_adapters: int = 32
    ) -> None:
        self._base, self._pool, self._dtype = base, pool, dtype
        self._max_adapters = max_adapters
        self._device = torch.device(pool.device)
        self._groups: dict[int, RankSlots] = {}
        self._ranks_of: dict[str, tuple[int, ...]] = {}
        self._sites: dict[tuple[int, str], dict[int, PackedSite]] = {}
        self._own_vectors: dict[str, SiteVectors] = {}
        self._vectors = PackedVectors({}, {})
        self._last: tuple[list[str | None], PackedBatch] | None = None

    def order_key(self, digest: str | None, num_rows: int) -> tuple[int, bool, int]:
        """Rows of requests sorted by this key have those of a rank group side by side: first those
        that bring few rows, in slot order, then the others."""
        ranks = () if digest is None else self._ranks_of[digest]
        if digest is None or not ranks:
            return (0, False, 0)
        rank = ranks[0]
        return (rank, num_rows > FEW_ROWS, self._groups[rank].holders.index(digest))

    def create_batch(self, row_digests: Sequence[str | None]) -> PackedBatch:
        """Group the rows; `row_digests[t]` is row t's adapter, packed by `update` before."""
        if self._last is not None and self._last[0] == row_digests:
            return self._last[1]  # most steps decode what the step before did
        groups = []
        for rank, slots in sorted(self._groups.items()):
            slot_of = slots.slot_of
            pairs = [(r, slot_of[d]) for r, d in enumerate(row_digests) if d in slot_of]
            if pairs:
                rows, row_slots = zip(*pairs, strict=True)
                groups.append(
                    create_rank_group(rank, len(slots.holders), rows, row_slots, self._device)
                )
        vectors = self._vectors.try_select(row_digests, self._device)
        batch = PackedBatch(self._sites, LoraBatch(tuple(groups)), vectors)
        self._last = (list(row_digests), batch)
        return batch

    def update(self, adapters: Mapping[str, PooledAdapter]) -> None:
        """Pack what is missing: `adapters` are all that running requests hold.

        The others stay packed in case they come back, as long as there are no more than fit a
        batch; those go first that were in no batch for the most changes of the set.
        """
        missing = adapters.keys() - self._ranks_of.keys()
        if not missing:
            return
        for digest in sorted(adapters.keys() - missing):  # the dict's order is that of their use
            self._ranks_of[digest] = self._ranks_of.pop(digest)
        idle = [digest for digest in self._ranks_of if digest not in adapters]
        num_over = len(self._ranks_of) + len(missing) - self._max_adapters
        if num_over > 0:
            self._drop(idle[:num_over])
        for digest in sorted(missing):
            self._pack(adapters[digest])
        self._note_change()

    def _note_change(self) -> None:
        self._last = None
        self._sites = {}
        for rank, slots in self._groups.items():
            for key, site in slots.sites():
                self._sites.setdefault(key, {})[rank] = site
        if list(self._own_vectors) != list(self._vectors.slot_of):
            self._vectors = pack_vectors(self._base, self._own_vectors, self._dtype, self._device)

    def _drop(self, digests: Iterable[str]) -> None:
        for digest in digests:
            for rank in self._ranks_of.pop(digest):
                self._groups[rank].drop(digest)
            self._own_vectors.pop(digest, None)
        for rank, slots in list(self._groups.items()):
            slots.compact()
            if not slots.holders:
                del self._groups[rank]

    def _pack(self, adapter: PooledAdapter) -> None:
        factors = {site: pooled for site, pooled in adapter.sites.items() if pooled.rank}
        ranks = sorted({pooled.padded_rank for pooled in factors.values()})
        slot_of = {}
        written: dict[int, set[Site]] = {rank: set() for rank in ranks}
        for rank in ranks:
            if rank not in self._groups:
                self._groups[rank] = RankSlots(rank, self._base, self._dtype, self._device)
            slot_of[rank] = self._groups[rank].take_slot(adapter.digest)
            own = (site for site, pooled in factors.items() if pooled.padded_rank == rank)
            self._groups[rank].make_room(own)
        for site, pooled in factors.items():
            a, b = self._pool.read(adapter.digest, site)
            rank = pooled.padded_rank
            self._groups[rank].write(slot_of[rank], site, a, b, pooled.scale)
            written[rank].add(site)
        for rank, sites in written.items():
            self._groups[rank].clear_rest(slot_of[rank], sites)
        if vectors := copy_vectors(self._pool, adapter):
            self._own_vectors[adapter.digest] = vectors
        self._ranks_of[adapter.digest] = tuple(ranks)
