"""The page pool: the device memory that holds adapter pages.

What lies where in it is `placement`'s business. The pool knows digests, not tenants; who may be
evicted is the tiers' business.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from weft_adapters.device_vocabulary import DeviceVocabulary, create_device_vocabulary
from weft_adapters.page_memory import PageMemory
from weft_adapters.placement import Block, Placement, Placer, PooledSite, Run
from weft_adapters.site_weights import SiteWeights, matrices_of
from weft_adapters.sites import BaseSpec, Site


@dataclass(frozen=True, slots=True)
class PooledAdapter:
    """An adapter on the device. `checksum` is over all of it as it was written, where the pool
    keeps them; `load_number` counts the pool's loads, so that each can be told from the next;
    `prepared` is what was made of its layers' sites at the load (see `PagePool.prepare_with`);
    `vocabulary` is its part in embedding and head, None for none."""

    digest: str
    placement: Placement
    num_bytes: int
    checksum: int | None
    load_number: int
    prepared: object = field(default=None, repr=False, compare=False)
    vocabulary: DeviceVocabulary | None = field(default=None, repr=False, compare=False)

    @property
    def sites(self) -> Mapping[Site, PooledSite]:
        return self.placement.sites


Prepare = Callable[[Mapping[Site, PooledSite]], object]


class PagePool:
    """One flat tensor of `budget_bytes`, shared by all adapters of one base. Thread-safe.

    With `keep_checksums`, `integrity` finds pages that were changed, at the price of reading every
    adapter once more when it is loaded. `max_bytes`: it may grow to so much; on a CPU only.
    """

    def __init__(
        self,
        base: BaseSpec,
        budget_bytes: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        keep_checksums: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        self._base, self._keep_checksums = base, keep_checksums
        self.dtype, self.device = dtype, torch.device(device)
        self._placer = Placer(base, (max_bytes or budget_bytes) // dtype.itemsize)
        arena = self._placer.arena
        if budget_bytes < self._unit_bytes:
            raise ValueError(f"a pool of {budget_bytes} bytes has no room for a single page")
        num_elements = arena.num_units * self._placer.unit_elements
        self._pages = PageMemory(num_elements, dtype, self.device, is_lent=max_bytes is not None)
        if max_bytes is not None:
            arena.withhold(arena.num_units - budget_bytes // self._unit_bytes)
            self._commit(arena.free_runs())
        self._adapters: dict[str, PooledAdapter] = {}
        self._being_written: dict[str, Placement] = {}
        self._num_loads = 0
        self._prepare: Prepare | None = None
        self._lock = threading.Lock()

    @property
    def memory(self) -> Tensor:
        """The whole arena, flat: `Run.offset` counts its elements. To be read, not written."""
        return self._pages.memory

    @property
    def num_pages(self) -> int:
        """All units that are the pool's; a page of the narrowest site takes one or more."""
        with self._lock:
            return self._placer.arena.num_units - self._placer.arena.num_withheld

    @property
    def num_free_pages(self) -> int:
        with self._lock:
            return self._placer.arena.num_free

    @property
    def num_bytes(self) -> int:
        return self.num_pages * self._unit_bytes

    @property
    def max_bytes(self) -> int:
        """What it may grow to."""
        return self._pages.memory.numel() * self.dtype.itemsize

    def grow(self, num_bytes: int) -> int:
        """Up to `num_bytes` more, in whole units; how many they are. Their memory is there before
        anybody gets them."""
        with self._lock:
            runs = self._placer.arena.withheld(num_bytes // self._unit_bytes)
        self._commit(runs)
        with self._lock:
            self._placer.arena.restore(runs)
        return sum(size for _, size in runs) * self._unit_bytes

    def shrink(self, num_bytes: int) -> int:
        """Give up to `num_bytes` that are free back to the system, in whole units; how many they
        are. OSError where the system does not take them; they are nobody's then."""
        with self._lock:
            runs = self._placer.arena.withhold(num_bytes // self._unit_bytes)
        for start, size in runs:
            self._pages.release(self._placer.elements(Block(start, size)))
        return sum(size for _, size in runs) * self._unit_bytes

    def _commit(self, runs: Sequence[tuple[int, int]]) -> None:
        for start, size in runs:
            self._pages.commit(self._placer.elements(Block(start, size)))

    @property
    def num_free_bytes(self) -> int:
        return self.num_free_pages * self._unit_bytes

    def num_bytes_needed(self, weights: Mapping[Site, SiteWeights]) -> int:
        return self._placer.num_units(weights) * self._unit_bytes

    @property
    def _unit_bytes(self) -> int:
        return self._placer.unit_elements * self.dtype.itemsize

    def prepare_with(self, prepare: Prepare) -> None:
        """Have `prepare` called with the sites of each load, once and by the thread that loads, so
        that nothing is left to be done when a step first uses the adapter. What it returns goes
        with these pages alone, as the adapter's `prepared`. What it raises fails the load.

        ValueError when the pool holds adapters already, or prepares for somebody else.
        """
        with self._lock:
            if self._adapters or self._being_written:
                raise ValueError("the pool has adapters that were loaded without being prepared")
            if self._prepare is not None:
                raise ValueError("the pool's adapters are prepared for somebody else")
            self._prepare = prepare

    def try_load(
        self,
        digest: str,
        weights: Mapping[Site, SiteWeights],
        pause: Callable[[], None] = lambda: None,
    ) -> PooledAdapter | None:
        """Copy an adapter into free pages; None, and nothing changed, when they do not suffice.

        The pages are written, site by site with a `pause` after each, before anyone can see them;
        on CUDA by a stream of their own, so that no step waits for a copy.
        """
        with self._lock:
            if digest in self._adapters:
                return self._adapters[digest]
            placement = self._placer.try_place(weights)
            if placement is None:
                return None
            self._being_written[digest] = placement
        try:
            with self._pages.copying():
                for site, pooled in placement.sites.items():
                    self._write(site, pooled, weights[site])
                    pause()
                vocabulary = self._write_vocabulary(placement, weights)
            units = self._placer.units(placement)
            checksum = self._checksum(units) if self._keep_checksums else None
            prepared = None if self._prepare is None else self._prepare(placement.sites)
        except BaseException:
            with self._lock:
                del self._being_written[digest]
                self._placer.give_back(placement)
            raise
        num_bytes = sum(size for _, size in units) * self._unit_bytes
        with self._lock:
            self._num_loads += 1
            adapter = PooledAdapter(
                digest, placement, num_bytes, checksum, self._num_loads, prepared, vocabulary
            )
            self._adapters[digest] = adapter
            del self._being_written[digest]
        return adapter

    def _views(self, site: Site, run: Run) -> tuple[Tensor, Tensor]:
        bounds = self._placer.bounds(site, run)
        a, b = (self._pages.memory[part].view(run.num_rows, -1) for part in bounds)
        return a, b

    def _write(self, site: Site, pooled: PooledSite, weights: SiteWeights) -> None:
        row = 0
        for run in pooled.runs:
            rows = slice(row, row + run.num_rows)
            bounds = self._placer.bounds(site, run)
            for part, source in zip(bounds, (weights.a, weights.b), strict=True):
                self._pages.copy(source[rows], part, site)
            row += run.num_rows
        for offset, vector in (
            (pooled.row_scale, weights.row_scale), (pooled.bias, weights.bias)
        ):  # fmt: skip
            if offset is not None and vector is not None:
                self._pages.copy(vector, slice(offset, offset + vector.size), site)

    def _write_vocabulary(
        self, placement: Placement, weights: Mapping[Site, SiteWeights]
    ) -> DeviceVocabulary | None:
        matrices, views = matrices_of(weights), []
        for block, matrix in zip(placement.matrices, matrices, strict=True):
            bounds = self._placer.elements(block)
            self._pages.copy(matrix, bounds, "embedding or head")
            views.append(self._pages.memory[bounds][: matrix.size].view(matrix.shape))
        return create_device_vocabulary(self._base, weights, matrices, views)

    def get(self, digest: str) -> PooledAdapter | None:
        with self._lock:
            return self._adapters.get(digest)

    def read(self, digest: str, site: Site) -> tuple[Tensor, Tensor]:
        """`A [padded_rank, in]` and `B [padded_rank, out]`: views where the site is one run."""
        runs = self._adapters[digest].sites[site].runs
        views = [self._views(site, run) for run in runs]
        if not views:
            num_in, num_out = self._base.shape(site)
            return self._pages.memory.new_empty(0, num_in), self._pages.memory.new_empty(0, num_out)
        if len(views) == 1:
            return views[0]
        return torch.cat([a for a, _ in views]), torch.cat([b for _, b in views])

    def free(self, digest: str) -> None:
        """Give an adapter's pages back; KeyError when it is not there."""
        with self._lock:
            self._placer.give_back(self._adapters.pop(digest).placement)

    def read_vectors(self, digest: str, site: Site) -> tuple[Tensor | None, Tensor | None]:
        """The row scale and the bias `[out]`: views, None for none."""
        row_scale, bias = self._vectors(site, self._adapters[digest].sites[site])
        return row_scale, bias

    def _vectors(self, site: Site, pooled: PooledSite) -> list[Tensor | None]:
        num_out = self._base.shape(site)[1]
        return [
            None if offset is None else self._pages.memory[offset : offset + num_out]
            for offset in (pooled.row_scale, pooled.bias)
        ]

    def _checksum(self, units: Sequence[tuple[int, int]]) -> int:
        """Over all that an adapter takes, also what was left as it was behind its vectors."""
        checksum = 0
        for start, size in _joined(units):
            data = self._pages.memory[self._placer.elements(Block(start, size))]
            checksum = zlib.crc32(data.cpu().view(torch.uint8).numpy().data, checksum)
        return checksum

    def integrity(self) -> None:
        """AssertionError when a page is lost or shared, or, where the pool keeps checksums, does
        not hold what was written."""
        with self._lock:
            held = {
                digest: self._placer.units(adapter.placement)
                for digest, adapter in self._adapters.items()
            }
            being_written = map(self._placer.units, self._being_written.values())
            position = 0
            arena = self._placer.arena
            rest = [arena.free_runs(), arena.withheld_runs()]
            for start, size in sorted(chain(*held.values(), *being_written, *rest)):
                assert start == position, "a page is lost or shared"
                position = start + size
            assert position == arena.num_units, "free + used pages are not all pages"
            for digest, adapter in self._adapters.items():
                found = None if adapter.checksum is None else self._checksum(held[digest])
                assert found == adapter.checksum, f"the pages of {digest} have changed"


def _joined(units: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, number) of the longest runs of units that lie together."""
    joined: list[tuple[int, int]] = []
    for start, size in sorted(units):
        if joined and sum(joined[-1]) == start:
            start, size = joined[-1][0], joined.pop()[1] + size
        joined.append((start, size))
    return joined
