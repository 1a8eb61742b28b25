"""The host tier: adapters' factors in host memory, bounded in bytes.

Not thread-safe: the tiers hold their lock around every call. Times are monotonic seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from weft_adapters.load_times import LoadTimes
from weft_adapters.policy import EvictionPolicy, LruPolicy, Pins, Resident, choose_victims
from weft_adapters.site_weights import SiteWeights, num_bytes
from weft_adapters.sites import Site

Weights = Mapping[Site, SiteWeights]


class HostTier:
    """At most `budget_bytes`, except that the newest adapter is always kept. Who makes room is the
    policy's choice."""

    def __init__(
        self, budget_bytes: int, policy: EvictionPolicy | None = None, pins: Pins | None = None
    ) -> None:
        self._budget_bytes = budget_bytes
        self.policy = LruPolicy() if policy is None else policy
        self._pins = Pins() if pins is None else pins
        self._loads = LoadTimes(latency_s=1e-3, bytes_per_s=1e9)
        self._adapters: dict[str, Weights] = {}
        self._residents: dict[str, Resident] = {}
        self.num_bytes = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self._adapters

    def get(self, digest: str) -> Weights | None:
        """The factors; None when they are not here."""
        return self._adapters.get(digest)

    def use(self, digest: str) -> Weights | None:
        """The same, now the most recently used."""
        if digest in self._adapters:
            self._residents[digest].last_used_s = time.monotonic()
        return self._adapters.get(digest)

    def put(self, digest: str, weights: Weights, load_s: float) -> list[str]:
        """Keep the factors, which took `load_s` to come; the digests of those that made room."""
        now, size = time.monotonic(), num_bytes(weights)
        self._loads.record(size, load_s)
        self.drop(digest)
        others = self._pins.free_to_go(list(self._residents.values()), self._budget_bytes)
        self._adapters[digest] = weights
        self._residents[digest] = Resident(digest, size, now, self._loads.estimate(size))
        self.num_bytes += size
        excess = self.num_bytes - self._budget_bytes
        if excess <= 0:
            return []
        ranked = self.policy.rank(others, now)
        # where all together do not suffice, the newcomer is alone with those that are pinned
        victims = choose_victims(ranked, excess) or ranked
        for victim in victims:
            self.drop(victim.digest)
        return [victim.digest for victim in victims]

    def drop(self, digest: str) -> None:
        """Does nothing where it is not here."""
        if self._adapters.pop(digest, None) is not None:
            self.num_bytes -= self._residents.pop(digest).num_bytes

    def integrity(self) -> None:
        """AssertionError when the byte count is not what is held."""
        held = sum(num_bytes(weights) for weights in self._adapters.values())
        assert held == self.num_bytes, "the host tier's byte count is wrong"
        assert self._adapters.keys() == self._residents.keys(), "an adapter on the host is lost"
