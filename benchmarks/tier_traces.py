"""The request streams of `tiers`: which of the registered adapters is asked for, and when.

All arrive as a Poisson stream at 10 requests a second and are drawn from numpy's frozen generator,
so that a seed is a trace: the tests hold the digest of each.

    zipf      independent requests, the n-th adapter with 1 / n of the first's share (s = 1)
    scan      the same, and in two stretches every other request is from a sweep that asks for each
              registered adapter once, in turn, as an evaluation of all of them does
    shifting  the same, but every 2,500 requests a tenth of the adapters trade their popularity
              with others, and half-way all of them do
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRACES = ("zipf", "scan", "shifting")
REQUESTS_PER_S = 10.0
_SHIFT_EVERY = 2_500


@dataclass(frozen=True, slots=True)
class Trace:
    """`adapters[i]` int64, 0 .. num_adapters - 1, is asked for at `times_s[i]`."""

    adapters: NDArray[np.int64]
    times_s: NDArray[np.float64]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.adapters.astype("<i8").tobytes()).hexdigest()


def create_trace(name: str, num_adapters: int, num_requests: int, seed: int = 42) -> Trace:
    """The trace by name; ValueError for an unknown one."""
    if name not in TRACES:
        raise ValueError(f"the trace must be one of {', '.join(TRACES)}, not {name!r}")
    random = np.random.RandomState(seed)
    times_s = np.cumsum(random.exponential(1.0 / REQUESTS_PER_S, num_requests))
    shares = 1.0 / np.arange(1, num_adapters + 1)
    edges = np.cumsum(shares / shares.sum())
    ranks = np.minimum(np.searchsorted(edges, random.random_sample(num_requests)), num_adapters - 1)
    adapter_of_rank = random.permutation(num_adapters)
    if name == "shifting":
        adapters = np.empty(num_requests, np.int64)
        for start in range(0, num_requests, _SHIFT_EVERY):
            if start:
                is_middle = start <= num_requests // 2 < start + _SHIFT_EVERY
                count = num_adapters if is_middle else num_adapters // 10
                chosen = random.permutation(num_adapters)[:count]
                adapter_of_rank[chosen] = adapter_of_rank[random.permutation(chosen)]
            part = slice(start, start + _SHIFT_EVERY)
            adapters[part] = adapter_of_rank[ranks[part]]
    else:
        adapters = adapter_of_rank[ranks].astype(np.int64)
    if name == "scan":
        sweep = np.arange(num_adapters)
        for start in (num_requests // 3, 2 * num_requests // 3):
            places = np.arange(start, min(start + 2 * num_adapters, num_requests), 2)
            adapters[places] = sweep[: len(places)]
    return Trace(adapters, times_s)
