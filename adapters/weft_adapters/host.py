"""The host tier: adapters' factors in host memory, bounded in bytes, least recently used out first.

Not thread-safe: the tiers hold their lock around every call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from weft_adapters.site_weights import SiteWeights, num_bytes
from weft_adapters.sites import Site

Weights = Mapping[Site, SiteWeights]


class HostTier:
    """At most `budget_bytes`, except that the newest adapter is always kept."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._adapters: OrderedDict[str, Weights] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self._adapters

    def use(self, digest: str) -> Weights | None:
        """The factors, now the most recently used; None when they are not here."""
        if digest not in self._adapters:
            return None
        self._adapters.move_to_end(digest)
        return self._adapters[digest]

    def put(self, digest: str, weights: Weights) -> list[str]:
        """Keep the factors; the digests of those that made room."""
        self._adapters[digest] = weights
        self.num_bytes += num_bytes(weights)
        evicted = []
        while self.num_bytes > self._budget_bytes and len(self._adapters) > 1:
            old, old_weights = self._adapters.popitem(last=False)
            self.num_bytes -= num_bytes(old_weights)
            evicted.append(old)
        return evicted

    def drop(self, digest: str) -> None:
        """Does nothing where it is not here."""
        weights = self._adapters.pop(digest, None)
        if weights is not None:
            self.num_bytes -= num_bytes(weights)

    def integrity(self) -> None:
        """AssertionError when the byte count is not what is held."""
        held = sum(num_bytes(weights) for weights in self._adapters.values())
        assert held == self.num_bytes, "the host tier's byte count is wrong"
