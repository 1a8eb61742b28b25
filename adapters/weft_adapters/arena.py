"""A first-fit allocator of runs of equal units. Plain integers, no memory behind it."""

from __future__ import annotations

import bisect


class Arena:
    """Units `[0, num_units)`; free runs are kept sorted and never touch each other."""

    def __init__(self, num_units: int) -> None:
        self.num_units = num_units
        self._starts: list[int] = [0] if num_units else []
        self._sizes: dict[int, int] = {0: num_units} if num_units else {}

    @property
    def num_free(self) -> int:
        return sum(self._sizes.values())

    def try_take(self, size: int) -> int | None:
        """The start of a run of `size` units; None when no free run is long enough."""
        for i, start in enumerate(self._starts):
            length = self._sizes[start]
            if length >= size:
                del self._starts[i], self._sizes[start]
                if length > size:
                    self._insert(start + size, length - size)
                return start
        return None

    def give_back(self, start: int, size: int) -> None:
        i = bisect.bisect_left(self._starts, start)
        if i < len(self._starts):
            following = self._starts[i]
            assert start + size <= following, "a unit is given back twice"
            if start + size == following:
                size += self._sizes.pop(following)
                del self._starts[i]
        if i > 0:
            before = self._starts[i - 1]
            assert before + self._sizes[before] <= start, "a unit is given back twice"
            if before + self._sizes[before] == start:
                self._sizes[before] += size
                return
        self._insert(start, size)

    def _insert(self, start: int, size: int) -> None:
        bisect.insort(self._starts, start)
        self._sizes[start] = size

    def free_runs(self) -> list[tuple[int, int]]:
        return [(start, self._sizes[start]) for start in self._starts]
