"""Killed with -9 at any await, a close makes one invoice a tenant, and exports are whole or unseen.

What is played, and what holds after the next start, is in `crash`, which runs by itself: it forks,
which a process with threads must not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.crash_runs import play


def kill(url: str, folder: Path, num_runs: int, seed: int) -> tuple[int, int]:
    """(points there are, runs that were killed)."""
    printed = play("tests.billing.crash", url, folder, num_runs, seed)
    num_stops, num_killed = map(int, printed.split())
    return num_stops, num_killed


@pytest.mark.slow
def test_killed_at_some_awaits_a_close_and_its_exports_are_made_once(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    num_stops, num_killed = kill(sqlite_database_url, tmp_path / "crash", 3, 5)
    assert num_stops > 100
    assert num_killed >= 2


@pytest.mark.verify
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(8))
def test_killed_200_times_a_close_and_its_exports_are_made_once(
    database_url: str, tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    _, num_killed = kill(database_url, tmp_path / "crash", 25, seed)
    record_property("num_killed", num_killed)
    assert num_killed >= 22
