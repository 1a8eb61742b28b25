"""The page pool: the device memory that holds adapter pages.

A page is 8 rank rows of one site: `A [8, in]` and `B [8, out]`, the last page of a site padded with
zero rows. Sites differ in width, so the arena is carved into equal units of which every page takes
a whole number. An adapter has pages only at the sites that it touches, at its true rank. The pages
of a site lie in one run where there is room (all A rows, then all B rows), else page by page.

The pool knows digests, not tenants; who may be evicted is the tiers' business.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft_adapters.arena import Arena
from weft_adapters.pages import PAGE_ROWS, padded_rank
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import Float32
from weft_kernels.memory import zeros

# torch runs an operation on more elements than this in parallel. A second thread that does so has
# OpenMP keep a second team of threads, and with more of them than cores every parallel region of
# the engine's own thread sleeps and wakes: its steps took twice as long.
_MAX_ELEMENTS_AT_ONCE = 32768


@dataclass(frozen=True, slots=True)
class Run:
    """`num_rows` rank rows that lie together; offset in elements: A rows, then B rows."""

    offset: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class PooledSite:
    """Where one site of an adapter lies. `padded_rank` is a multiple of 8."""

    rank: int
    padded_rank: int
    scale: float
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class PooledAdapter:
    """An adapter on the device. `checksum` is over its pages as they were written, where the pool
    keeps them; `load_number` counts the pool's loads, so that each can be told from the next;
    `prepared` is what was made of its sites at the load (see `PagePool.prepare_with`)."""

    digest: str
    sites: Mapping[Site, PooledSite]
    num_bytes: int
    checksum: int | None
    load_number: int
    prepared: object = field(default=None, repr=False, compare=False)


Prepare = Callable[[Mapping[Site, PooledSite]], object]


def _slices(tensor: Tensor) -> list[slice]:
    """A matrix's rows in pieces that torch handles on the calling thread alone."""
    num_rows, width = tensor.shape
    if tensor.device.type != "cpu":
        return [slice(0, num_rows)]
    step = max(1, _MAX_ELEMENTS_AT_ONCE // width)
    return [slice(i, min(i + step, num_rows)) for i in range(0, num_rows, step)]


class PagePool:
    """One flat tensor of `budget_bytes`, shared by all adapters of one base. Thread-safe.

    With `keep_checksums`, `integrity` finds pages that were changed, at the price of reading every
    adapter once more when it is loaded.
    """

    def __init__(
        self,
        base: BaseSpec,
        budget_bytes: int,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        keep_checksums: bool = False,
    ) -> None:
        self._base, self._keep_checksums = base, keep_checksums
        self.dtype, self.device = dtype, torch.device(device)
        widths = {sum(base.shape(site)) for site in base.sites()}
        self._unit_width = math.gcd(*widths)
        self._unit_elements = PAGE_ROWS * self._unit_width
        num_units = budget_bytes // (self._unit_elements * dtype.itemsize)
        if num_units == 0:
            raise ValueError(f"a pool of {budget_bytes} bytes has no room for a single page")
        self._memory = zeros(num_units * self._unit_elements, dtype=dtype, device=self.device)
        # numpy copies a few rows in a fraction of torch's time, and on the calling thread alone
        is_on_host = self.device.type == "cpu" and dtype == torch.float32
        self._host_array = self._memory.numpy() if is_on_host else None
        self._arena = Arena(num_units)
        self._adapters: dict[str, PooledAdapter] = {}
        self._being_written: dict[str, Mapping[Site, PooledSite]] = {}
        self._num_loads = 0
        self._prepare: Prepare | None = None
        self._lock = threading.Lock()

    @property
    def memory(self) -> Tensor:
        """The whole arena, flat: `Run.offset` counts its elements. To be read, not written."""
        return self._memory

    @property
    def num_pages(self) -> int:
        """All units; a page of the narrowest site takes one or more."""
        return self._arena.num_units

    @property
    def num_free_pages(self) -> int:
        with self._lock:
            return self._arena.num_free

    @property
    def num_bytes(self) -> int:
        return self._memory.numel() * self.dtype.itemsize

    @property
    def num_free_bytes(self) -> int:
        return self.num_free_pages * self._unit_elements * self.dtype.itemsize

    def num_bytes_needed(self, weights: Mapping[Site, SiteWeights]) -> int:
        units = sum(self._units(site, padded_rank(w.rank)) for site, w in weights.items())
        return units * self._unit_elements * self.dtype.itemsize

    def _units(self, site: Site, num_rows: int) -> int:
        return num_rows // PAGE_ROWS * (sum(self._base.shape(site)) // self._unit_width)

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

    def try_load(self, digest: str, weights: Mapping[Site, SiteWeights]) -> PooledAdapter | None:
        """Copy an adapter into free pages; None, and nothing changed, when they do not suffice.

        The pages are written before anyone can see them.
        """
        with self._lock:
            if digest in self._adapters:
                return self._adapters[digest]
            placed = self._place(weights)
            if placed is None:
                return None
            self._being_written[digest] = placed
        try:
            for site, pooled in placed.items():
                self._write(site, pooled, weights[site])
            num_bytes = self.num_bytes_needed(weights)
            checksum = self._checksum(placed) if self._keep_checksums else None
            prepared = None if self._prepare is None else self._prepare(placed)
        except BaseException:
            with self._lock:
                del self._being_written[digest]
                self._give_back_all(placed)
            raise
        with self._lock:
            self._num_loads += 1
            adapter = PooledAdapter(digest, placed, num_bytes, checksum, self._num_loads, prepared)
            self._adapters[digest] = adapter
            del self._being_written[digest]
        return adapter

    def _place(self, weights: Mapping[Site, SiteWeights]) -> dict[Site, PooledSite] | None:
        placed: dict[Site, PooledSite] = {}
        for site, w in weights.items():
            runs = self._take_runs(site, padded_rank(w.rank))
            if runs is None:
                self._give_back_all(placed)
                return None
            placed[site] = PooledSite(w.rank, padded_rank(w.rank), w.scale, runs)
        return placed

    def _take_runs(self, site: Site, num_rows: int) -> tuple[Run, ...] | None:
        start = self._arena.try_take(self._units(site, num_rows))
        if start is not None:
            return (Run(start * self._unit_elements, num_rows),)
        runs: list[Run] = []
        for _ in range(num_rows // PAGE_ROWS):
            start = self._arena.try_take(self._units(site, PAGE_ROWS))
            if start is None:
                self._give_back(site, tuple(runs))
                return None
            runs.append(Run(start * self._unit_elements, PAGE_ROWS))
        return tuple(runs)

    def _give_back_all(self, sites: Mapping[Site, PooledSite]) -> None:
        for site, pooled in sites.items():
            self._give_back(site, pooled.runs)

    def _give_back(self, site: Site, runs: tuple[Run, ...]) -> None:
        for run in runs:
            units = self._units(site, run.num_rows)
            self._arena.give_back(run.offset // self._unit_elements, units)

    def _bounds(self, site: Site, run: Run) -> tuple[slice, slice]:
        """The elements of a run's A and of its B."""
        num_in, num_out = self._base.shape(site)
        middle = run.offset + run.num_rows * num_in
        return slice(run.offset, middle), slice(middle, middle + run.num_rows * num_out)

    def _views(self, site: Site, run: Run) -> tuple[Tensor, Tensor]:
        a, b = (self._memory[part].view(run.num_rows, -1) for part in self._bounds(site, run))
        return a, b

    def _write(self, site: Site, pooled: PooledSite, weights: SiteWeights) -> None:
        row = 0
        for run in pooled.runs:
            rows = slice(row, row + run.num_rows)
            for bounds, source in zip(self._bounds(site, run), (weights.a, weights.b), strict=True):
                self._copy(source[rows], bounds, site)
            row += run.num_rows

    def _copy(self, source: Float32, bounds: slice, site: Site) -> None:
        """Rows to a part of the arena, and zeros after them: it may hold another adapter's."""
        filled = slice(bounds.start, bounds.start + source.size)
        padding = slice(filled.stop, bounds.stop)
        if self._host_array is not None:
            self._host_array[filled].reshape(source.shape)[:] = source
            self._host_array[padding] = 0
            return
        target, part = self._memory[filled].view(source.shape), torch.from_numpy(source)
        for rows in _slices(target):
            target[rows].copy_(part[rows])
            if self.dtype != torch.float32 and not torch.isfinite(target[rows]).all():
                raise ValueError(f"The weights of {site} are too large for {self.dtype}.")
        self._memory[padding].zero_()

    def get(self, digest: str) -> PooledAdapter | None:
        with self._lock:
            return self._adapters.get(digest)

    def read(self, digest: str, site: Site) -> tuple[Tensor, Tensor]:
        """`A [padded_rank, in]` and `B [padded_rank, out]`: views where the site is one run."""
        runs = self._adapters[digest].sites[site].runs
        views = [self._views(site, run) for run in runs]
        if len(views) == 1:
            return views[0]
        return torch.cat([a for a, _ in views]), torch.cat([b for _, b in views])

    def free(self, digest: str) -> None:
        """Give an adapter's pages back; KeyError when it is not there."""
        with self._lock:
            adapter = self._adapters.pop(digest)
            self._give_back_all(adapter.sites)

    def _checksum(self, sites: Mapping[Site, PooledSite]) -> int:
        checksum = 0
        for site, pooled in sites.items():
            for run in pooled.runs:
                for view in self._views(site, run):
                    data = view.cpu().contiguous().view(torch.uint8).numpy()
                    checksum = zlib.crc32(data.data, checksum)
        return checksum

    def integrity(self) -> None:
        """AssertionError when a page is lost or shared, or, where the pool keeps checksums, does
        not hold what was written."""
        with self._lock:
            taken = [
                (run.offset // self._unit_elements, self._units(site, run.num_rows))
                for sites in (
                    *(a.sites for a in self._adapters.values()),
                    *self._being_written.values(),
                )
                for site, pooled in sites.items()
                for run in pooled.runs
            ]
            position = 0
            for start, size in sorted([*taken, *self._arena.free_runs()]):
                assert start == position, "a page is lost or shared"
                position = start + size
            assert position == self._arena.num_units, "free + used pages are not all pages"
            for adapter in self._adapters.values():
                found = None if adapter.checksum is None else self._checksum(adapter.sites)
                assert found == adapter.checksum, f"the pages of {adapter.digest} have changed"
