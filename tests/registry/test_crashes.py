"""Killed with -9 at any await, the registry loses nothing and keeps nothing half-done.

The scenarios, and what holds after the next start, are in `crash`, which runs by itself: it forks,
which a process with threads must not.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.crash_runs import play

# stops that each scenario has at least; two for a step
NUM_STOPS = {"upload": 80, "alias": 20, "import": 80, "parts": 80, "purge": 50, "merge": 200}


def kill(folder: Path, *stops: str) -> list[int]:
    """At how many points each scenario was killed."""
    printed = play("tests.registry.crash", folder, *stops)
    return [int(line.split()[1]) for line in printed.splitlines()]


@pytest.mark.slow
def test_killed_at_some_awaits_the_next_start_finds_all_or_nothing(tmp_path: Path) -> None:
    choose = random.Random(21)
    stops = [
        f"{scenario}:{point}"
        for scenario, num_stops in NUM_STOPS.items()
        for point in choose.sample(range(num_stops), 2)
    ]
    assert kill(tmp_path / "crash", *stops) == [1] * len(stops)


@pytest.mark.verify
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scenario", NUM_STOPS)
def test_killed_at_every_await_the_next_start_finds_all_or_nothing(
    tmp_path: Path, scenario: str
) -> None:
    assert kill(tmp_path / "crash", scenario)[0] >= NUM_STOPS[scenario]
