"""Half-open intervals of time in Unix seconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """[start_at, end_at), never empty."""

    start_at: int
    end_at: int


def join(starts: Iterable[int], width_s: int, max_gap_s: int = 0) -> list[Interval]:
    """Spans of `width_s` as intervals in order; those at most `max_gap_s` apart become one."""
    found: list[Interval] = []
    for start_at in sorted(starts):
        end_at = start_at + width_s
        if found and start_at <= found[-1].end_at + max_gap_s:
            found[-1] = Interval(found[-1].start_at, max(end_at, found[-1].end_at))
        else:
            found.append(Interval(start_at, end_at))
    return found


def split(
    intervals: Iterable[Interval], width_s: int
) -> tuple[Sequence[Interval], Sequence[Interval]]:
    """(the whole multiples of `width_s` in each, what is left of it at either end)."""
    whole, rest = [], []
    for start_at, end_at in intervals:
        first, last = start_at + -start_at % width_s, end_at - end_at % width_s
        if first >= last:
            rest.append(Interval(start_at, end_at))
            continue
        whole.append(Interval(first, last))
        rest += [
            Interval(*edge) for edge in ((start_at, first), (last, end_at)) if edge[0] < edge[1]
        ]
    return whole, rest


def divide(
    intervals: Iterable[Interval], holes: Sequence[Interval]
) -> tuple[Sequence[Interval], Sequence[Interval]]:
    """(what of the intervals is outside of the holes, what is inside); holes are in order."""
    outside, inside = [], []
    for start_at, end_at in intervals:
        for hole in holes:
            first, last = max(start_at, hole.start_at), min(end_at, hole.end_at)
            if first >= last:
                continue
            if start_at < first:
                outside.append(Interval(start_at, first))
            inside.append(Interval(first, last))
            start_at = last
        if start_at < end_at:
            outside.append(Interval(start_at, end_at))
    return outside, inside
