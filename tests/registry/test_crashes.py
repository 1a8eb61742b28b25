"""Killed with -9 at any await, the registry loses nothing and keeps nothing half-done.

The scenarios, and what holds after the next start, are in `crash`, which runs by itself: it forks,
which a process with threads must not.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# stops that each scenario has at least; two for a step
NUM_STOPS = {"upload": 80, "alias": 20, "import": 80, "parts": 80, "purge": 50, "merge": 200}


def kill(folder: Path, *stops: str) -> list[int]:
    """At how many points each scenario was killed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.registry.crash", str(folder), *stops],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [int(line.split()[1]) for line in done.stdout.splitlines()]


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
