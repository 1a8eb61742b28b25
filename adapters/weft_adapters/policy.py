"""Which adapters a tier keeps: the same policies for device, host memory and disk.

`cost` keeps what is worth most per byte,

    worth per byte = popularity x seconds to bring it again / bytes

(as GreedyDual-Size-Frequency, Cherkasova 1998, with a popularity that decays instead of a count
that is inflated against). `lru` and `lfu` look at the last use and at the number of requests alone.

Each tier has a policy of its own, told of the requests that come down to it: who is always on the
device needs no place in host memory.

The policy ranks; what may not go (pinned, in use, awaited) the tier leaves out before it asks.
Thread-safe. Times are monotonic seconds; `last_used_s` may be by any clock, one for a tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weft_adapters.popularity import Popularity

POLICIES = ("cost", "lru", "lfu")


@dataclass(eq=False, slots=True)
class Resident:
    """An adapter in a tier as a policy sees it; the tier keeps it up to date. `reload_s`: to bring
    it here again from the tier below."""

    digest: str
    num_bytes: int
    last_used_s: float
    reload_s: float


class EvictionPolicy(Protocol):
    """Ranks the adapters of one tier."""

    def record(self, digest: str, now: float) -> None:
        """A request for the adapter has come to the tier, whether or not it has it."""

    def rank(self, residents: Sequence[Resident], now: float) -> list[Resident]:
        """The first to go first."""


class LruPolicy:
    """The least recently used goes first."""

    def record(self, digest: str, now: float) -> None:
        """The tiers know when an adapter was used last."""

    def rank(self, residents: Sequence[Resident], now: float) -> list[Resident]:
        return sorted(residents, key=lambda resident: resident.last_used_s)


class LfuPolicy:
    """The least often requested goes first; of equals the least recently used."""

    def __init__(self, popularity: Popularity) -> None:
        self._popularity = popularity

    def record(self, digest: str, now: float) -> None:
        self._popularity.record(digest, now)

    def rank(self, residents: Sequence[Resident], now: float) -> list[Resident]:
        counts = self._popularity.counts([r.digest for r in residents])
        return _rank(counts, residents)


class CostPolicy:
    """What is worth least per byte goes first; of equals, as those that nobody has asked for since
    the start, the least recently used."""

    def __init__(self, popularity: Popularity) -> None:
        self._popularity = popularity

    def record(self, digest: str, now: float) -> None:
        self._popularity.record(digest, now)

    def rank(self, residents: Sequence[Resident], now: float) -> list[Resident]:
        popularity = self._popularity.of([r.digest for r in residents], now)
        worth = popularity * [r.reload_s / max(1, r.num_bytes) for r in residents]
        return _rank(worth, residents)


def _rank(worth: NDArray[Any], residents: Sequence[Resident]) -> list[Resident]:
    """The least worth first; of equals the least recently used."""
    last_used_s = np.array([r.last_used_s for r in residents])
    order = np.lexsort(np.stack([last_used_s, worth]))
    return [residents[i] for i in order]


def create_policy(name: str, popularity: Popularity | None = None) -> EvictionPolicy:
    """The policy by name, with a memory of its own unless it shares one; ValueError for an unknown
    name."""
    if name == "lru":
        return LruPolicy()
    if name == "lfu":
        return LfuPolicy(Popularity() if popularity is None else popularity)
    if name == "cost":
        return CostPolicy(Popularity() if popularity is None else popularity)
    raise ValueError(f"the eviction policy must be one of {', '.join(POLICIES)}, not {name!r}")


def choose_victims(ranked: Sequence[Resident], num_bytes: int) -> list[Resident]:
    """Who has to go for `num_bytes` to become free, the first to go first; empty where all of them
    would not suffice. Nobody goes in vain: without any one of them it would be too little."""
    if num_bytes <= 0 or sum(r.num_bytes for r in ranked) < num_bytes:
        return []
    chosen: list[Resident] = []
    surplus = -num_bytes
    for resident in ranked:
        if surplus >= 0:
            break
        chosen.append(resident)
        surplus += resident.num_bytes
    # a large one that came last may have made some before it needless
    needed = []
    for resident in reversed(chosen):
        if resident.num_bytes <= surplus:
            surplus -= resident.num_bytes
        else:
            needed.append(resident)
    return needed[::-1]


class Pins:
    """Adapters that stay where they are. They hold half of a tier at most, those that were pinned
    first; the others are as all others there, or pins could leave no room for anybody else."""

    def __init__(self) -> None:
        self._pinned: dict[str, None] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._pinned

    def set(self, digest: str, is_pinned: bool) -> None:
        """Idempotent."""
        if is_pinned:
            self._pinned = {**self._pinned, digest: None}  # whoever reads it sees one or the other
        else:
            self._pinned = {d: None for d in self._pinned if d != digest}

    def free_to_go(self, residents: Sequence[Resident], budget_bytes: int) -> list[Resident]:
        """Those of a tier that are not held by a pin."""
        if not self._pinned:
            return list(residents)
        by_digest = {resident.digest: resident for resident in residents}
        held: set[str] = set()
        num_bytes = 0
        for digest in self._pinned:
            if digest in by_digest:
                num_bytes += by_digest[digest].num_bytes
                if num_bytes > budget_bytes // 2:
                    break
                held.add(digest)
        return [resident for resident in residents if resident.digest not in held]
