"""Where the parts of an adapter go in the pool's arena.

A page is 8 rank rows of one site: `A [8, in]` and `B [8, out]`, the last page of a site padded with
zero rows. Sites differ in width, so the arena is carved into equal units of which every page takes
a whole number. An adapter has pages only at the sites that it touches, at its true rank. The pages
of a site lie in one run where there is room (all A rows, then all B rows), else page by page.

Row scales and biases are `[out]` vectors and no pages. Those of an adapter lie side by side in one
block of units where there is room, else each in a block of its own.

Embedding and head have no pages either: each of their matrices has a block of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weft_adapters.arena import Arena
from weft_adapters.pages import PAGE_ROWS, padded_rank
from weft_adapters.site_weights import SiteWeights, matrices_of
from weft_adapters.sites import BaseSpec, Site

# elements: vectors start where pages may
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Run:
    """`num_rows` rank rows that lie together; offset in elements: A rows, then B rows."""

    offset: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class PooledSite:
    """Where one site of an adapter lies. `padded_rank` is a multiple of 8, 0 where there are no
    factors; row_scale, bias: offsets of `[out]` vectors in elements, None for none."""

    rank: int
    padded_rank: int
    scale: float
    runs: tuple[Run, ...]
    row_scale: int | None = None
    bias: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Units that lie together and hold no pages."""

    start: int
    num_units: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an adapter lies: `sites` are those of the layers, `blocks` hold the vectors that they
    name, `matrices` those of embedding and head, in the order of `matrices_of`."""

    sites: Mapping[Site, PooledSite]
    blocks: tuple[Block, ...] = ()
    matrices: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class _Vector:
    """One `[out]` vector of an adapter: a site's row scale, or its bias."""

    site: Site
    is_row_scale: bool
    num_elements: int

    def placed_at(self, offset: int, pooled: PooledSite) -> PooledSite:
        if self.is_row_scale:
            return replace(pooled, row_scale=offset)
        return replace(pooled, bias=offset)

    @property
    def padded(self) -> int:
        return -(-self.num_elements // _ALIGNMENT) * _ALIGNMENT


class Placer:
    """Takes an adapter's units from the arena and gives them back. Not thread-safe."""

    def __init__(self, base: BaseSpec, num_elements: int) -> None:
        """ValueError where not a single page fits."""
        self._base = base
        self._unit_width = math.gcd(*{sum(base.shape(site)) for site in base.sites()})
        self.unit_elements = PAGE_ROWS * self._unit_width
        self.arena = Arena(num_elements // self.unit_elements)

    def num_units(self, weights: Mapping[Site, SiteWeights]) -> int:
        """Of an adapter whose vectors lie side by side."""
        layers = _of_layers(weights)
        pages = sum(self._page_units(site, padded_rank(w.rank)) for site, w in layers.items())
        matrices = sum(self._units_of(matrix.size) for matrix in matrices_of(weights))
        return pages + self._block_units(list(_vectors(layers))) + matrices

    def units(self, placement: Placement) -> list[tuple[int, int]]:
        """(start, number) of all that were taken."""
        runs = [
            (run.offset // self.unit_elements, self._page_units(site, run.num_rows))
            for site, pooled in placement.sites.items()
            for run in pooled.runs
        ]
        blocks = (*placement.blocks, *placement.matrices)
        return runs + [(block.start, block.num_units) for block in blocks]

    def give_back(self, placement: Placement) -> None:
        for start, num_units in self.units(placement):
            self.arena.give_back(start, num_units)

    def try_place(self, weights: Mapping[Site, SiteWeights]) -> Placement | None:
        """None, and nothing taken, where the free units do not suffice."""
        matrices = self._take_matrices([matrix.size for matrix in matrices_of(weights)])
        if matrices is None:
            return None
        placement = self._try_place_layers(_of_layers(weights))
        if placement is None:
            self.give_back(Placement({}, matrices=matrices))
            return None
        return replace(placement, matrices=matrices)

    def _try_place_layers(self, weights: Mapping[Site, SiteWeights]) -> Placement | None:
        sites: dict[Site, PooledSite] = {}
        for site, w in weights.items():
            runs = self._take_runs(site, padded_rank(w.rank))
            if runs is None:
                self.give_back(Placement(sites))
                return None
            sites[site] = PooledSite(w.rank, padded_rank(w.rank), w.scale, runs)
        vectors = list(_vectors(weights))
        if not vectors:
            return Placement(sites)
        blocks = self._take_blocks([vectors]) or self._take_blocks([[v] for v in vectors])
        if blocks is None:
            self.give_back(Placement(sites))
            return None
        for block, own in blocks:
            offset = block.start * self.unit_elements
            for vector in own:
                sites[vector.site] = vector.placed_at(offset, sites[vector.site])
                offset += vector.padded
        return Placement(sites, tuple(block for block, _ in blocks))

    def bounds(self, site: Site, run: Run) -> tuple[slice, slice]:
        """The elements of a run's A and of its B."""
        num_in, num_out = self._base.shape(site)
        middle = run.offset + run.num_rows * num_in
        return slice(run.offset, middle), slice(middle, middle + run.num_rows * num_out)

    def elements(self, block: Block) -> slice:
        return slice(
            block.start * self.unit_elements, (block.start + block.num_units) * self.unit_elements
        )

    def _page_units(self, site: Site, num_rows: int) -> int:
        return num_rows // PAGE_ROWS * (sum(self._base.shape(site)) // self._unit_width)

    def _block_units(self, vectors: Sequence[_Vector]) -> int:
        return self._units_of(sum(vector.padded for vector in vectors))

    def _units_of(self, num_elements: int) -> int:
        return -(-num_elements // self.unit_elements)

    def _take_matrices(self, sizes: Sequence[int]) -> tuple[Block, ...] | None:
        taken: list[Block] = []
        for size in sizes:
            num_units = self._units_of(size)
            start = self.arena.try_take(num_units)
            if start is None:
                self.give_back(Placement({}, matrices=tuple(taken)))
                return None
            taken.append(Block(start, num_units))
        return tuple(taken)

    def _take_runs(self, site: Site, num_rows: int) -> tuple[Run, ...] | None:
        if num_rows == 0:
            return ()
        start = self.arena.try_take(self._page_units(site, num_rows))
        if start is not None:
            return (Run(start * self.unit_elements, num_rows),)
        runs: list[Run] = []
        for _ in range(num_rows // PAGE_ROWS):
            start = self.arena.try_take(self._page_units(site, PAGE_ROWS))
            if start is None:
                pooled = PooledSite(num_rows, num_rows, 1.0, tuple(runs))
                self.give_back(Placement({site: pooled}))
                return None
            runs.append(Run(start * self.unit_elements, PAGE_ROWS))
        return tuple(runs)

    def _take_blocks(
        self, groups: Sequence[Sequence[_Vector]]
    ) -> list[tuple[Block, Sequence[_Vector]]] | None:
        """A block for each group, with what it is for."""
        taken: list[tuple[Block, Sequence[_Vector]]] = []
        for group in groups:
            num_units = self._block_units(group)
            start = self.arena.try_take(num_units)
            if start is None:
                self.give_back(Placement({}, tuple(block for block, _ in taken)))
                return None
            taken.append((Block(start, num_units), group))
        return taken


def _of_layers(weights: Mapping[Site, SiteWeights]) -> Mapping[Site, SiteWeights]:
    return {site: w for site, w in weights.items() if not site.is_vocabulary}


def _vectors(weights: Mapping[Site, SiteWeights]) -> Iterator[_Vector]:
    for site, w in weights.items():
        if w.row_scale is not None:
            yield _Vector(site, True, w.row_scale.size)
        if w.bias is not None:
            yield _Vector(site, False, w.bias.size)
