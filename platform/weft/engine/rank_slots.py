"""Adapters of one padded rank, packed by slot: what the active set of adapters is made of.

Legend: S slots, R padded rank, I in, O out, E experts, K rank rows of all sites of an input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_adapters.sites import INPUTS, BaseSpec, Site
from weft_kernels.lora import PackedSite

_FIRST_CAPACITY = 4

# by the first of the projections that read the same rows: their A lie side by side
_INPUT_OF = {name: names[0] for names in INPUTS for name in names}


@dataclass(slots=True)
class _Input:
    """Packed tensors of the sites that share an input, those that some adapter touches: joint A
    `[S, (E,) K, I]`, and of each projection its place in K and its B `[S, (E,) R, O]`."""

    joint: Tensor
    b: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        return [self.joint, *self.b.values()]


class RankSlots:
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
