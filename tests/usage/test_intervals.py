"""However time is cut, each second of it is in one part."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from weft.usage.intervals import Interval, divide, join, split

starts = st.sets(st.integers(0, 30), max_size=8).map(lambda found: {10 * n for n in found})
intervals = starts.map(lambda found: join(found, 10))


def seconds(intervals: Iterable[Interval]) -> list[int]:
    return [at for interval in intervals for at in range(*interval)]


@given(starts, st.sampled_from([0, 10, 25]))
def test_joined_spans_are_in_order_and_apart(found: set[int], max_gap_s: int) -> None:
    joined = join(found, 10, max_gap_s)
    assert {at for start in found for at in range(start, start + 10)} <= set(seconds(joined))
    assert all(b.start_at - a.end_at > max_gap_s for a, b in zip(joined, joined[1:], strict=False))
    assert {interval.start_at for interval in joined} <= found


@given(intervals, st.sampled_from([10, 20, 30]))
def test_a_split_leaves_the_edges(cut: list[Interval], width_s: int) -> None:
    whole, rest = split(cut, width_s)
    assert sorted(seconds([*whole, *rest])) == seconds(cut)
    assert all(at % width_s == 0 for interval in whole for at in interval)
    assert all(end_at - start_at < 2 * width_s for start_at, end_at in rest)


@given(intervals, intervals)
def test_a_division_tells_outside_from_inside(cut: list[Interval], holes: list[Interval]) -> None:
    outside, inside = divide(cut, holes)
    assert seconds(inside) == sorted(set(seconds(cut)) & set(seconds(holes)))
    assert seconds(outside) == sorted(set(seconds(cut)) - set(seconds(holes)))
