"""A first-fit allocator of runs of equal units. Plain integers, no memory behind it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


class Arena:
    """Units `[0, num_units)`; free runs are kept sorted and never touch each other. Some can be
    withheld: nobody has them, and nobody gets them before they are restored."""

    def __init__(self, num_units: int) -> None:
        self.num_units = num_units
        self._starts: list[int] = [0] if num_units else []
        self._sizes: dict[int, int] = {0: num_units} if num_units else {}
        self._withheld: list[tuple[int, int]] = []

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

    @property
    def num_withheld(self) -> int:
        return sum(size for _, size in self._withheld)

    def withhold(self, num_units: int) -> list[tuple[int, int]]:
        """Up to `num_units` of those that are free, the last ones first, as runs."""
        runs = []
        while num_units > 0 and self._starts:
            start = self._starts.pop()
            length = self._sizes.pop(start)
            size = min(length, num_units)
            if length > size:
                self._insert(start, length - size)
            runs.append((start + length - size, size))
            num_units -= size
        self._withheld += runs
        return runs

    def withheld(self, num_units: int) -> list[tuple[int, int]]:
        """The first ones of those that are withheld, as runs of `num_units` together."""
        runs = []
        for start, length in sorted(self._withheld):
            size = min(length, num_units)
            if size > 0:
                runs.append((start, size))
                num_units -= size
        return runs

    def restore(self, runs: Sequence[tuple[int, int]]) -> None:
        """Have withheld units given out again; each run lies within one that was withheld."""
        for start, size in runs:
            place = next(
                i for i, (first, length) in enumerate(self._withheld)
                if first <= start and start + size <= first + length
            )  # fmt: skip
            first, length = self._withheld.pop(place)
            parts = [(first, start - first), (start + size, first + length - start - size)]
            self._withheld += [part for part in parts if part[1]]
            self.give_back(start, size)

    def withheld_runs(self) -> list[tuple[int, int]]:
        return sorted(self._withheld)

    def free_runs(self) -> list[tuple[int, int]]:
        return [(start, self._sizes[start]) for start in self._starts]
