"""Popularity: quick to follow a change, slow to forget, bounded in what it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft_adapters.popularity import TIME_SCALES_S, Popularity


def value(popularity: Popularity, digest: str, now: float) -> float:
    return float(popularity.of([digest], now)[0])


def test_a_single_request_counts_for_about_one_over_the_root_of_its_age() -> None:
    popularity = Popularity()
    popularity.record("once", 0.0)
    weights = [value(popularity, "once", age) * age**0.5 for age in np.geomspace(10, 10_000, 50)]
    assert max(weights) < 2 * min(weights)


def test_who_was_popular_for_long_outlives_who_came_in_a_burst() -> None:
    popularity = Popularity()
    for i in range(1000):
        popularity.record("regular", 10.0 * i)
    for i in range(100):
        popularity.record("burst", 9_990.0 + 0.02 * i)
    assert value(popularity, "burst", 9_992.0) > value(popularity, "regular", 9_992.0)
    assert value(popularity, "burst", 10_600.0) < value(popularity, "regular", 10_600.0)


def test_who_is_popular_now_overtakes_who_was_popular_before() -> None:
    popularity = Popularity()
    for i in range(1000):
        popularity.record("before", 10.0 * i)
    for i in range(30):
        popularity.record("now", 10_000.0 + 10.0 * i)
    assert value(popularity, "now", 10_300.0) < value(popularity, "before", 10_300.0)
    for i in range(30, 400):
        popularity.record("now", 10_000.0 + 10.0 * i)
    assert value(popularity, "now", 14_000.0) > value(popularity, "before", 14_000.0)


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 500)), max_size=80))
def test_it_is_the_sum_over_all_requests(requests: list[tuple[int, float]]) -> None:
    popularity = Popularity()
    now, times = 0.0, dict[str, list[float]]()
    for adapter, gap_s in requests:
        now += gap_s
        popularity.record(str(adapter), now)
        times.setdefault(str(adapter), []).append(now)
    for digest, seen in times.items():
        expected = sum(
            math.exp(-(now - then) / tau) / tau**0.5 for then in seen for tau in TIME_SCALES_S
        )
        assert value(popularity, digest, now) == pytest.approx(expected)
    assert popularity.counts([*times, "nobody"]).tolist() == [*map(len, times.values()), 0]


def test_the_least_popular_are_forgotten_first() -> None:
    popularity = Popularity(max_remembered=400)
    for i in range(20):
        popularity.record("regular", float(i))
    for i in range(1000):
        popularity.record(f"scan-{i}", 20.0 + 0.01 * i)
        assert len(popularity) <= 400
    assert value(popularity, "regular", 30.0) > 0
    assert value(popularity, "scan-0", 30.0) == 0
    assert value(popularity, "scan-999", 30.0) > 0
    assert popularity.top(1, 30.0) == ["regular"]


def test_a_clock_that_stands_still_does_no_harm() -> None:
    popularity = Popularity()
    popularity.record("a", 10.0)
    popularity.record("a", 9.0)
    assert math.isfinite(value(popularity, "a", 8.0))
