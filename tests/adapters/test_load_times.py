"""Load times are learned from loads, whatever their sizes are."""

from __future__ import annotations

import random

import pytest

from weft_adapters.load_times import LoadTimes


def test_what_is_assumed_holds_before_the_first_load() -> None:
    times = LoadTimes(latency_s=0.02, bytes_per_s=1e9)
    assert times.estimate(0) == pytest.approx(0.02)
    assert times.estimate(10**9) == pytest.approx(1.02)


def test_latency_and_bandwidth_are_told_apart() -> None:
    times, rng = LoadTimes(latency_s=0.001, bytes_per_s=1e10), random.Random(0)
    for _ in range(300):
        num_bytes = rng.randrange(10**6, 10**9)
        times.record(num_bytes, (0.05 + num_bytes / 5e8) * rng.uniform(0.9, 1.1))
    for num_bytes in (10**6, 10**8, 10**9):
        assert times.estimate(num_bytes) == pytest.approx(0.05 + num_bytes / 5e8, rel=0.2)


def test_a_store_that_becomes_slow_is_noticed() -> None:
    times = LoadTimes(latency_s=0.01, bytes_per_s=1e9)
    for seconds in (0.02, 0.2):
        for _ in range(150):
            times.record(10**7, seconds)
    assert times.estimate(10**7) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("sizes", [(0,), (10**9, 1), (10**6,)])
def test_estimates_are_never_negative(sizes: tuple[int, ...]) -> None:
    times = LoadTimes(latency_s=0.0, bytes_per_s=1e9)
    for i in range(200):
        times.record(sizes[i % len(sizes)], 0.5 if i % len(sizes) else 0.001)
    assert all(times.estimate(n) >= 0 for n in (0, 1, 10**6, 10**12))


def test_a_source_without_bandwidth_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes_per_s"):
        LoadTimes(latency_s=0.0, bytes_per_s=0.0)
