"""Killed with -9 at any moment, a server loses no event, doubles none, and bills nobody for what it
did not finish.

What is played, and what holds after the next start, is in `crash`, which runs by itself: it forks,
which a process with threads must not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.crash_runs import play


def kill(folder: Path, num_kills: int, seed: int, **environment: str) -> tuple[int, int, int]:
    """(answers that came to their end, events, those of them that are of lost requests)."""
    printed = play(
        "tests.server.crash", folder, num_kills, seed, OMP_NUM_THREADS="1", **environment
    )
    num_answered, num_events, num_lost = map(int, printed.split())
    return num_answered, num_events, num_lost


@pytest.mark.slow
def test_killed_at_some_moments_no_event_is_lost_or_doubled(tmp_path: Path) -> None:
    num_answered, num_events, num_lost = kill(tmp_path, 2, 2)
    assert num_answered > 0
    assert 0 < num_lost < num_events


@pytest.mark.verify
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_killed_200_times_no_event_is_lost_or_doubled(
    database: str,
    seed: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    environment = {}
    if database == "postgresql":
        environment["WEFT_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    num_answered, num_events, num_lost = kill(tmp_path, 25, seed, **environment)
    record_property("num_answered", num_answered)
    record_property("num_lost", num_lost)
    assert num_answered > 100
    assert 0 < num_lost < num_events
