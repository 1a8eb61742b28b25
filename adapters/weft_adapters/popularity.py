"""How much each adapter has been asked for lately. Knows neither tiers nor bytes.

    popularity(t) = sum over its requests s, sum over tau of exp(-(t - s) / tau) / sqrt(tau)

with time scales tau a decade apart, so that a request of age `a` counts for about 1 / sqrt(a), on
whatever scale popularity changes. Need falls with time by such a power law where nothing is known
of the process behind it (Anderson and Schooler 1991). One time scale alone would have to be chosen
for the traffic: too short a one forgets by noon who was popular in the morning, too long a one
keeps for a day who was popular once.

Times are monotonic seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TIME_SCALES_S = (10.0, 100.0, 1_000.0, 10_000.0, 100_000.0)
# remembered; beyond it those that are asked for least are forgotten, a quarter at a time
MAX_REMEMBERED = 16_384
_FIRST_ROWS = 256

Float64 = NDArray[np.float64]


class Popularity:
    """Popularities and counts by digest, of at most `max_remembered` adapters. Thread-safe."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        if max_remembered < 4:
            raise ValueError(f"at least 4 adapters are remembered, not {max_remembered}")
        self._max_remembered = max_remembered
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}
        num_rows = min(_FIRST_ROWS, max_remembered)
        self._scales_s = np.array(TIME_SCALES_S)
        self._weights = np.zeros((num_rows, len(TIME_SCALES_S)))  # as of `_times`
        self._times = np.zeros(num_rows)
        self._counts = np.zeros(num_rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, digest: str, now: float) -> None:
        """One request for the adapter."""
        with self._lock:
            row = self._rows.get(digest)
            if row is None:
                row = self._add(digest, now)
            age_s = max(0.0, now - float(self._times[row]))
            self._weights[row] *= np.exp(-age_s / self._scales_s)
            self._weights[row] += self._scales_s**-0.5
            self._times[row] = now
            self._counts[row] += 1

    def of(self, digests: Sequence[str], now: float) -> Float64:
        """`[N]`, of each; 0 for those that are not remembered."""
        with self._lock:
            return self._of(digests, now)

    def counts(self, digests: Sequence[str]) -> NDArray[np.int64]:
        """`[N]`, the requests for each since it is remembered."""
        with self._lock:
            rows = self._find(digests)
            return np.where(rows >= 0, self._counts[rows], 0)

    def top(self, count: int, now: float) -> list[str]:
        """The most popular, the first ahead."""
        with self._lock:
            return self._top(count, now)

    # ---- with the lock ----

    def _of(self, digests: Sequence[str], now: float) -> Float64:
        rows = self._find(digests)
        ages_s = np.maximum(0.0, now - self._times[rows])
        weights = self._weights[rows] * np.exp(-ages_s[:, None] / self._scales_s)
        return np.where(rows >= 0, weights.sum(axis=1), 0.0)

    def _top(self, count: int, now: float) -> list[str]:
        digests = list(self._rows)
        order = np.argsort(-self._of(digests, now), kind="stable")
        return [digests[i] for i in order[:count]]

    def _find(self, digests: Sequence[str]) -> NDArray[np.intp]:
        """Rows; -1 for those that are not remembered."""
        return np.array([self._rows.get(digest, -1) for digest in digests], np.intp)

    def _add(self, digest: str, now: float) -> int:
        if len(self._rows) == self._max_remembered:
            self._forget(now)
        row = len(self._rows)
        if row == len(self._times):
            self._grow(min(2 * row, self._max_remembered))
        self._rows[digest] = row
        self._weights[row], self._times[row], self._counts[row] = 0.0, now, 0
        return row

    def _grow(self, num_rows: int) -> None:
        more = num_rows - len(self._times)
        self._weights = np.concatenate([self._weights, np.zeros((more, len(self._scales_s)))])
        self._times = np.concatenate([self._times, np.zeros(more)])
        self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])

    def _forget(self, now: float) -> None:
        """Drop a quarter, the least popular."""
        kept = self._top(3 * self._max_remembered // 4, now)
        rows = self._find(kept)
        for values in (self._weights, self._times, self._counts):
            values[: len(rows)] = values[rows]
        self._rows = {digest: row for row, digest in enumerate(kept)}
