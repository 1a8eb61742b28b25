"""The adapters of the running batch, packed the way the batched GEMMs read them.

Pages in the pool are the adapters' home; this is a working copy of those in use, grouped by padded
rank and indexed by slot, changed only when the set in use changes. An adapter of several ranks has
a slot in the group of each. A slot given to another adapter is zeroed first at every site, so that
nothing of the one before can show through where the next one touches nothing.

Legend: S slots, R padded rank, I in, O out, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from weft.engine.model.decoder import AdapterBatch
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.sites import BaseSpec, Site
from weft_kernels.lora import LoraBatch, PackedSite, create_rank_group

_FIRST_CAPACITY = 4


class _RankSlots:
    """The slots of one padded rank, and packed tensors of every site that some adapter touches."""

    def __init__(self, rank: int, base: BaseSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.rank = rank
        self._base, self._dtype, self._device = base, dtype, device
        self._capacity = _FIRST_CAPACITY
        self.holders: list[str | None] = []
        self.sites: dict[tuple[int, str], PackedSite] = {}

    @property
    def slot_of(self) -> dict[str, int]:
        return {digest: slot for slot, digest in enumerate(self.holders) if digest is not None}

    def take_slot(self, digest: str) -> int:
        """A zeroed slot for `digest`: a free one, or a new one at the end."""
        if None in self.holders:
            slot = self.holders.index(None)
            self.holders[slot] = digest
        else:
            slot = len(self.holders)
            self.holders.append(digest)
            if slot >= self._capacity:
                self._grow(2 * self._capacity)
        for site in self.sites.values():
            for tensor in (site.a_SRI, site.b_SRO, site.scale_S):
                tensor[slot].zero_()
        return slot

    def drop(self, digest: str) -> None:
        self.holders[self.holders.index(digest)] = None

    def compact(self) -> None:
        """Fill the holes from the end when half the slots or more are empty."""
        if 2 * sum(holder is None for holder in self.holders) < len(self.holders):
            return
        while self.holders and self.holders[-1] is None:
            self.holders.pop()
        while None in self.holders:
            hole, last = self.holders.index(None), len(self.holders) - 1
            for site in self.sites.values():
                for tensor in (site.a_SRI, site.b_SRO, site.scale_S):
                    tensor[hole] = tensor[last]
            self.holders[hole] = self.holders.pop()
            while self.holders and self.holders[-1] is None:
                self.holders.pop()

    def write(self, slot: int, site: Site, a: Tensor, b: Tensor, scale: float) -> None:
        packed = self.sites.get((site.layer, site.projection))
        if packed is None:
            packed = self._create_site(site)
            self.sites[site.layer, site.projection] = packed
        index = (slot,) if site.expert is None else (slot, site.expert)
        packed.a_SRI[index] = a
        packed.b_SRO[index] = b
        packed.scale_S[index] = scale

    def _create_site(self, site: Site) -> PackedSite:
        num_in, num_out = self._base.shape(site)
        lead = [self._capacity] if site.expert is None else [self._capacity, self._base.num_experts]
        return PackedSite(
            a_SRI=self._zeros(*lead, self.rank, num_in),
            b_SRO=self._zeros(*lead, self.rank, num_out),
            scale_S=self._zeros(*lead),
        )

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _grow(self, capacity: int) -> None:
        def grown(old: Tensor) -> Tensor:
            new = self._zeros(capacity, *old.shape[1:])
            new[: old.shape[0]] = old
            return new

        self.sites = {
            key: PackedSite(grown(site.a_SRI), grown(site.b_SRO), grown(site.scale_S))
            for key, site in self.sites.items()
        }
        self._capacity = capacity


class ActiveSet:
    """Packs the adapters of each batch and says which row uses which slot."""

    def __init__(self, base: BaseSpec, pool: PagePool, dtype: torch.dtype) -> None:
        self._base, self._pool, self._dtype = base, pool, dtype
        self._device = torch.device(pool.device)
        self._groups: dict[int, _RankSlots] = {}
        self._ranks_of: dict[str, tuple[int, ...]] = {}

    def order_key(self, digest: str | None) -> tuple[int, int]:
        """Rows sorted by this key have those of a rank group side by side, in slot order."""
        if digest is None:
            return (0, 0)
        rank = self._ranks_of[digest][0]
        return (rank, self._groups[rank].holders.index(digest))

    def create_batch(self, row_digests: Sequence[str | None]) -> AdapterBatch:
        """Group the rows; `row_digests[t]` is row t's adapter, packed by `update` before."""
        rows_of: dict[str, list[int]] = {}
        for row, digest in enumerate(row_digests):
            if digest is not None:
                rows_of.setdefault(digest, []).append(row)
        groups = []
        for rank, slots in sorted(self._groups.items()):
            slot_of = slots.slot_of
            pairs = [(r, slot_of[d]) for d, rows in rows_of.items() if d in slot_of for r in rows]
            if pairs:
                rows, row_slots = zip(*pairs, strict=True)
                groups.append(
                    create_rank_group(rank, len(slots.holders), rows, row_slots, self._device)
                )
        return AdapterBatch(sites=self._sites(), lora=LoraBatch(tuple(groups)))

    def _sites(self) -> dict[tuple[int, str], dict[int, PackedSite]]:
        sites: dict[tuple[int, str], dict[int, PackedSite]] = {}
        for rank, slots in self._groups.items():
            for key, site in slots.sites.items():
                sites.setdefault(key, {})[rank] = site
        return sites

    def update(self, adapters: Mapping[str, PooledAdapter]) -> None:
        """Pack what is missing: `adapters` are all that running requests hold.

        The others stay packed while they cost little, in case they come back: they go when a slot
        is wanted, or when the batched GEMMs would read more idle adapters than used ones.
        """
        missing = adapters.keys() - self._ranks_of.keys()
        idle = self._ranks_of.keys() - adapters.keys()
        if missing or len(idle) > len(adapters) > 0:
            self._drop(idle)
        for digest in sorted(missing):
            self._pack(adapters[digest])

    def _drop(self, digests: Iterable[str]) -> None:
        for digest in digests:
            for rank in self._ranks_of.pop(digest):
                self._groups[rank].drop(digest)
        for rank, slots in list(self._groups.items()):
            slots.compact()
            if not slots.holders:
                del self._groups[rank]

    def _pack(self, adapter: PooledAdapter) -> None:
        ranks = sorted({site.padded_rank for site in adapter.sites.values()})
        slot_of = {}
        for rank in ranks:
            if rank not in self._groups:
                self._groups[rank] = _RankSlots(rank, self._base, self._dtype, self._device)
            slot_of[rank] = self._groups[rank].take_slot(adapter.digest)
        for site, pooled in adapter.sites.items():
            a, b = self._pool.read(adapter.digest, site)
            rank = pooled.padded_rank
            self._groups[rank].write(slot_of[rank], site, a, b, pooled.scale)
        self._ranks_of[adapter.digest] = tuple(ranks)
