"""What is asked of a base's weights when an adapter is loaded that was trained against them.

DoRA's row scale and a saved bias mean something only together with the base's own; whoever serves
the base knows in which form.
"""

from __future__ import annotations

from typing import Protocol

from weft_adapters.sites import Site
from weft_adapters.tensors import Float32


class BaseWeights(Protocol):
    """The base's weights as they are served: rounded as the engine rounds them.

    Called by threads that load adapters, beside the engine's steps. KeyError for a site that the
    base does not have.
    """

    @property
    def weight_format(self) -> str:
        """How the weights are rounded; it and the base's digest determine every value."""

    def bias(self, site: Site) -> Float32 | None:
        """`[out]`; None where the base has none."""

    def row_norms(self, site: Site, a_RI: Float32, b_RO: Float32, scale: float) -> Float32:
        """`||W_o + scale * sum_r b[r, o] a[r]||` of every row o of W: `[out]`, computed where the
        weights are."""

    def rows(self, site: Site, first: int, stop: int) -> Float32:
        """Of the embedding or the head, those of tokens `[first, stop)`: `[stop - first, H]`."""

    def served(self, rows: Float32) -> Float32:
        """An adapter's numbers in the format that it is served in."""
