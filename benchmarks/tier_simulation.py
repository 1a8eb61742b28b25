"""Tiers without bytes: the eviction policies of the real ones over a trace, adapter by adapter.

A request looks for its adapter from the device downwards. Where it is not, it comes in from below,
and others may have to go. A tier sees the requests that those above it missed. Nobody is in use or
waits here: what is measured is the choice of who stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.tier_traces import Trace
from numpy.typing import NDArray

from weft_adapters.policy import EvictionPolicy, Resident, choose_victims


@dataclass(frozen=True, slots=True)
class Level:
    """A tier: its room, what each adapter takes of it, and the seconds to bring each from the one
    below."""

    name: str
    budget_bytes: int
    num_bytes: Sequence[int]
    load_s: Sequence[float]


class Tier:
    """What a level holds, and the policy that chooses it."""

    def __init__(self, level: Level, policy: EvictionPolicy) -> None:
        self.level, self.policy = level, policy
        self.residents: dict[int, Resident] = {}
        self._used_bytes = 0

    def request(self, adapter: int, now: float) -> bool:
        """Whether it is here."""
        self.policy.record(str(adapter), now)
        resident = self.residents.get(adapter)
        if resident is not None:
            resident.last_used_s = now
        return resident is not None

    def insert(self, adapter: int, now: float) -> None:
        """Keep it, at the cost of others."""
        num_bytes = self.level.num_bytes[adapter]
        if num_bytes > self.level.budget_bytes:
            return
        load_s = self.level.load_s[adapter]
        new = self.residents[adapter] = Resident(str(adapter), num_bytes, now, load_s)
        self._used_bytes += num_bytes
        excess = self._used_bytes - self.level.budget_bytes
        if excess <= 0:
            return
        others = [resident for resident in self.residents.values() if resident is not new]
        for victim in choose_victims(self.policy.rank(others, now), excess):
            del self.residents[int(victim.digest)]
            self._used_bytes -= victim.num_bytes


class Hierarchy:
    """Levels from the device downwards, over a store that has everything."""

    def __init__(self, levels: Sequence[Level], policies: Sequence[EvictionPolicy]) -> None:
        self._tiers = [Tier(*pair) for pair in zip(levels, policies, strict=True)]

    def run(self, trace: Trace) -> NDArray[np.int64]:
        """Where each request finds its adapter: the index of the level, their number for the
        store."""
        requests = zip(trace.adapters.tolist(), trace.times_s.tolist(), strict=True)
        return np.array([self._request(adapter, now) for adapter, now in requests], np.int64)

    def _request(self, adapter: int, now: float) -> int:
        missed: list[Tier] = []
        for tier in self._tiers:
            if tier.request(adapter, now):
                break
            missed.append(tier)
        for tier in reversed(missed):
            tier.insert(adapter, now)
        return len(missed)


class OfflinePolicy:
    """Who is asked for again last goes first, weighed by its bytes (Belady 1966, by size).

    With equal sizes nobody has more hits. With others the best choice is NP-hard, and this is near
    it. `stream` are the requests that reach the tier; `record` has to follow it.
    """

    def __init__(self, stream: Iterable[int]) -> None:
        self._uses: dict[str, list[int]] = {}
        for position, adapter in enumerate(stream):
            self._uses.setdefault(str(adapter), []).append(position)
        for uses in self._uses.values():
            uses.reverse()  # the next one last
        self._position = 0

    def record(self, digest: str, now: float) -> None:
        self._uses[digest].pop()
        self._position += 1

    def rank(self, residents: Sequence[Resident], now: float) -> list[Resident]:
        return sorted(residents, key=lambda r: -self._wait(r.digest) * r.num_bytes)

    def _wait(self, digest: str) -> float:
        uses = self._uses[digest]
        return uses[-1] - self._position + 1.0 if uses else np.inf


def run_offline(trace: Trace, levels: Sequence[Level]) -> NDArray[np.int64]:
    """As `Hierarchy.run` with the future known, tier by tier: each sees what those above missed."""
    found = np.full(len(trace.adapters), len(levels))
    reached = np.arange(len(trace.adapters))
    for index, level in enumerate(levels):
        stream = Trace(trace.adapters[reached], trace.times_s[reached])
        policy = OfflinePolicy(stream.adapters.tolist())
        missed = Hierarchy([level], [policy]).run(stream) > 0
        found[reached[~missed]] = index
        reached = reached[missed]
    return found
