"""Killed with -9 at any await, a request with a key has one effect once it is repeated.

What is played, and what holds then, is in `crash`, which runs by itself: it forks, which a process
with threads must not.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.crash_runs import play


def kill(url: str, folder: Path, num_runs: int, seed: int) -> tuple[int, int, int]:
    """(points there are, runs that were killed, requests answered from what was kept)."""
    printed = play("tests.idempotency.crash", url, folder, num_runs, seed)
    num_stops, num_killed, num_replayed = map(int, printed.split())
    return num_stops, num_killed, num_replayed


@pytest.mark.slow
def test_killed_at_some_awaits_a_request_has_one_effect(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    num_stops, num_killed, _ = kill(sqlite_database_url, tmp_path, 4, 3)
    assert num_stops > 50
    assert num_killed >= 3


@pytest.mark.verify
@pytest.mark.timeout(1800)
def test_killed_200_times_a_request_has_one_effect(database_url: str, tmp_path: Path) -> None:
    _, num_killed, num_replayed = kill(database_url, tmp_path, 200, 11)
    assert num_killed >= 180
    assert num_replayed > 50, "no request was killed after its effect"
