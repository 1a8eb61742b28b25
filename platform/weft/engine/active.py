"""The adapters of the running batch, packed the way the batched GEMMs read them.

Pages in the pool are the adapters' home; this is a working copy of those in use, grouped by padded
rank and indexed by slot, changed only when the set in use changes. An adapter of several ranks has
a slot in the group of each. A slot given to another adapter is zeroed wherever that one touches
nothing, so that nothing of the one before can show through.

Legend: S slots, R padded rank, I in, O out, E experts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.engine.model.decoder import AdapterBatch
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.sites import BaseSpec, Site
from weft_kernels.lora import FEW_ROWS, LoraBatch, PackedSite, create_rank_group

_FIRST_CAPACITY = 4


# projections that read the same rows: their A lie side by side
_SHARED_INPUTS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("shared_gate_proj", "shared_up_proj"),
)
_INPUT_OF = {name: names[0] for names in _SHARED_INPUTS for name in names}


@dataclass(slots=True)
class _Input:
    """Packed tensors of the sites that share an input, those that some adapter touches: joint A
    `[S, (E,) K, I]`, and of each projection its place in K and its B `[S, (E,) R, O]`."""

    joint: Tensor
    b: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        return [self.joint, *self.b.values()]


class _RankSlots:
    """The slots of one padded rank, and packed tensors of every site that some adapter touches."""

    def __init__(self, rank: int, base: BaseSpec, dtype: torch.dtype, device: torch.device) -> None:
        self.rank = rank
        self._base, self._dtype, self._device = base, dtype, device
        self._capacity = _FIRST_CAPACITY
        self.holders: list[str | None] = []
        self._inputs: dict[tuple[int, str], _Input] = {}

    @property
    def slot_of(self) -> dict[str, int]:
        return {digest: slot for slot, digest in enumerate(self.holders) if digest is not None}

    def _tensors(self) -> Iterator[Tensor]:
        for shared in self._inputs.values():
            yield from shared.tensors()

    def take_slot(self, digest: str) -> int:
        """A slot for `digest`: a free one, or a new one at the end. What it holds is left over from
        another adapter until `write` and `clear_rest`."""
        if None in self.holders:
            slot = self.holders.index(None)
            self.holders[slot] = digest
            return slot
        self.holders.append(digest)
        if len(self.holders) > self._capacity:
            self._grow(2 * self._capacity)
        return len(self.holders) - 1

    def clear_rest(self, slot: int, written: Collection[Site]) -> None:
        """Zero a slot at every site but those that were written."""
        experts = range(self._base.num_experts)
        for (layer, _), shared in self._inputs.items():
            for place, (projection, b) in enumerate(shared.b.items()):
                rows = slice(place * self.rank, (place + 1) * self.rank)
                if b.dim() == 3:
                    if Site(layer, projection) not in written:
                        shared.joint[slot, rows].zero_()
                        b[slot].zero_()
                    continue
                idle = [e for e in experts if Site(layer, projection, e) not in written]
                if idle:
                    shared.joint[slot, idle, rows] = 0
                    b[slot, idle] = 0

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
            for tensor in self._tensors():
                tensor[hole] = tensor[last]
            self.holders[hole] = self.holders.pop()
            while self.holders and self.holders[-1] is None:
                self.holders.pop()

    def make_room(self, sites: Iterable[Site]) -> None:
        """Have packed tensors for all of `sites`, before any of them is written."""
        wanted: dict[tuple[int, str], list[Site]] = {}
        for site in sites:
            key = (site.layer, _INPUT_OF.get(site.projection, site.projection))
            wanted.setdefault(key, []).append(site)
        for key, own in wanted.items():
            self._widen(key, own)

    def _widen(self, key: tuple[int, str], sites: Sequence[Site]) -> None:
        old = self._inputs.get(key)
        b = {} if old is None else dict(old.b)
        for site in sites:
            if site.projection not in b:
                b[site.projection] = self._zeros(site, self.rank, self._base.shape(site)[1])
        if old is not None and len(b) == len(old.b):
            return
        num_in = self._base.shape(sites[0])[0]
        joint = self._zeros(sites[0], len(b) * self.rank, num_in)
        if old is not None:
            joint[..., : old.joint.shape[-2], :] = old.joint
        self._inputs[key] = _Input(joint, b)

    def write(self, slot: int, site: Site, a: Tensor, b: Tensor, scale: float) -> None:
        """`a` `[R, I]` and `b` `[R, O]` of one site; ask `make_room` first."""
        shared = self._inputs[site.layer, _INPUT_OF.get(site.projection, site.projection)]
        first = list(shared.b).index(site.projection) * self.rank
        index = (slot,) if site.expert is None else (slot, site.expert)
        shared.joint[index][first : first + self.rank] = a
        torch.mul(b, scale, out=shared.b[site.projection][index])

    def sites(self) -> Iterator[tuple[tuple[int, str], PackedSite]]:
        """Every packed site by layer and projection."""
        for (layer, _), shared in self._inputs.items():
            for place, (projection, b) in enumerate(shared.b.items()):
                first = place * self.rank
                a = shared.joint[..., first : first + self.rank, :]
                yield (layer, projection), PackedSite(a, b, shared.joint, first)

    def _zeros(self, site: Site, *shape: int) -> Tensor:
        lead = [self._capacity] if site.expert is None else [self._capacity, self._base.num_experts]
        return torch.zeros(*lead, *shape, dtype=self._dtype, device=self._device)

    def _grow(self, capacity: int) -> None:
        def grown(old: Tensor) -> Tensor:
            new = old.new_zeros(capacity, *old.shape[1:])
            new[: old.shape[0]] = old
            return new

        for shared in self._inputs.values():
            shared.joint = grown(shared.joint)
            shared.b = {projection: grown(b) for projection, b in shared.b.items()}
        self._capacity = capacity


class ActiveSet:
    """Packs the adapters of each batch and says which row uses which slot."""

    def __init__(
        self, base: BaseSpec, pool: PagePool, dtype: torch.dtype, max_adapters: int = 32
    ) -> None:
        self._base, self._pool, self._dtype = base, pool, dtype
        self._max_adapters = max_adapters
        self._device = torch.device(pool.device)
        self._groups: dict[int, _RankSlots] = {}
        self._ranks_of: dict[str, tuple[int, ...]] = {}
        self._sites: dict[tuple[int, str], dict[int, PackedSite]] = {}
        self._last: tuple[list[str | None], AdapterBatch] | None = None

    def order_key(self, digest: str | None, num_rows: int) -> tuple[int, bool, int]:
        """Rows of requests sorted by this key have those of a rank group side by side: first those
        that bring few rows, in slot order, then the others."""
        if digest is None:
            return (0, False, 0)
        rank = self._ranks_of[digest][0]
        return (rank, num_rows > FEW_ROWS, self._groups[rank].holders.index(digest))

    def create_batch(self, row_digests: Sequence[str | None]) -> AdapterBatch:
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
        batch = AdapterBatch(sites=self._sites, lora=LoraBatch(tuple(groups)))
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
        written: dict[int, set[Site]] = {rank: set() for rank in ranks}
        for rank in ranks:
            if rank not in self._groups:
                self._groups[rank] = _RankSlots(rank, self._base, self._dtype, self._device)
            slot_of[rank] = self._groups[rank].take_slot(adapter.digest)
            own = (site for site, pooled in adapter.sites.items() if pooled.padded_rank == rank)
            self._groups[rank].make_room(own)
        for site, pooled in adapter.sites.items():
            a, b = self._pool.read(adapter.digest, site)
            rank = pooled.padded_rank
            self._groups[rank].write(slot_of[rank], site, a, b, pooled.scale)
            written[rank].add(site)
        for rank, sites in written.items():
            self._groups[rank].clear_rest(slot_of[rank], sites)
        self._ranks_of[adapter.digest] = tuple(ranks)
