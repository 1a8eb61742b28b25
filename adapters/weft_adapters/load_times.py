"""How long it takes to bring an adapter from one place to the next, learned from the loads made.

    seconds(bytes) = latency + bytes / bandwidth

Not thread-safe.
"""

from __future__ import annotations

# of what was known before, at each load
_MEMORY = 0.98


class LoadTimes:
    """A line through the loads of late, by least squares.

    What is assumed at first stays as two observations among about fifty: loads that are all of one
    size say nothing about the slope.
    """

    def __init__(self, latency_s: float, bytes_per_s: float) -> None:
        if latency_s < 0 or bytes_per_s <= 0:
            raise ValueError(
                f"a load takes no negative time: latency_s={latency_s}, bytes_per_s={bytes_per_s}"
            )
        second = latency_s if latency_s > 0 else 1e-3
        num_bytes = second * bytes_per_s  # takes as long as the latency, so that both count
        self._assumed = _moments(0.0, latency_s), _moments(num_bytes, latency_s + second)
        self._seen: tuple[float, ...] = (0.0,) * 5  # as `_moments`

    def record(self, num_bytes: int, seconds: float) -> None:
        new = _moments(float(num_bytes), seconds)
        self._seen = tuple(_MEMORY * old + x for old, x in zip(self._seen, new, strict=True))

    def estimate(self, num_bytes: int) -> float:
        """Seconds; neither latency nor the time of a byte is ever negative."""
        sums = [sum(parts) for parts in zip(self._seen, *self._assumed, strict=True)]
        n, x, y, xx, xy = sums
        spread = n * xx - x * x
        slope = max(0.0, (n * xy - x * y) / spread)
        latency_s = (y - slope * x) / n
        if latency_s < 0:  # the line through the origin
            return num_bytes * xy / xx
        return latency_s + slope * num_bytes


def _moments(x: float, y: float) -> tuple[float, ...]:
    return (1.0, x, y, x * x, x * y)
