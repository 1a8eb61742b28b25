"""A slice of `benchmarks.tiers`: what the policies keep, on its traces and against the optimum."""

from __future__ import annotations

import functools

import pytest
from benchmarks.tier_simulation import run_offline
from benchmarks.tier_traces import TRACES, Trace, create_trace
from benchmarks.tiers import Setting, create_parser, margin, run_online

from weft_adapters.policy import POLICIES

ADAPTERS, REQUESTS = 300, 4_000


@pytest.fixture(scope="module", params=["mixed", "equal"])
def setting(request: pytest.FixtureRequest) -> Setting:
    numbers = {"adapters": ADAPTERS, "device": 8, "host": 75, "disk": 150}
    options = [part for name, n in numbers.items() for part in (f"--{name}", str(n))]
    return Setting(create_parser().parse_args(options), request.param)


@functools.cache
def trace(name: str) -> Trace:
    return create_trace(name, ADAPTERS, REQUESTS)


@pytest.mark.parametrize("name", TRACES)
def test_cost_is_no_worse_than_lru_and_no_better_than_the_optimum(
    setting: Setting, name: str
) -> None:
    requests = trace(name)
    runs = {policy: run_online(requests, setting.levels, policy) for policy in POLICIES}
    runs["offline"] = run_offline(requests, setting.levels)
    figures = {policy: setting.figures(found, requests.adapters) for policy, found in runs.items()}
    assert margin(figures) > -0.5
    assert figures["cost"]["wait_s"] < figures["lru"]["wait_s"]
    for policy in POLICIES:
        assert figures[policy]["device"] < figures["offline"]["device"]


def test_the_traces_are_those_of_the_recorded_results() -> None:
    digests = {name: create_trace(name, 2000, 30_000).digest for name in TRACES}
    assert digests == {
        "zipf": "027f3a8aa12984845a57be96a7b642d2a59c6225b194b4a33ae19a820faa8471",
        "scan": "8d30cd4ac9c7cd5184b0ff60e1e1ca1d44e517968f37eac32553ff6f80c9dbab",
        "shifting": "d4fc4a80c74d0ccc33d68dce5d5414ce081506269bff44f52963f3eb3726f5ce",
    }


def test_a_scan_asks_for_every_adapter() -> None:
    scan, zipf = trace("scan"), trace("zipf")
    swept = scan.adapters[REQUESTS // 3 : REQUESTS // 3 + 2 * ADAPTERS : 2]
    assert swept.tolist() == list(range(ADAPTERS))
    assert (scan.adapters[: REQUESTS // 3] == zipf.adapters[: REQUESTS // 3]).all()


def test_popularity_shifts() -> None:
    def most_popular(requests: Trace, part: slice) -> set[int]:
        adapters = requests.adapters[part].tolist()
        return set(sorted(set(adapters), key=adapters.count)[-10:])

    shifting = create_trace("shifting", ADAPTERS, 20_000)
    before = most_popular(shifting, slice(7_500, 10_000))
    after = most_popular(shifting, slice(10_000, 12_500))
    assert len(before & after) < 5
