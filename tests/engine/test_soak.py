"""A seeded 10-second slice of `benchmarks.soak`; `make verify` runs 20 minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.soak import Memory, Soak

from weft.engine.config import MIB


@pytest.mark.slow
def test_under_full_load_memory_is_flat_and_nothing_is_left(tmp_path: Path) -> None:
    soak = Soak(tmp_path, "moe", duration_s=10.0, seed=5)
    soak.run()
    soak.assert_nothing_left()
    soak.built.tiers.close()
    assert {"length", "stop", "abort"} <= soak.ended.keys()
    # oneDNN still fills its cache of compiled GEMMs, one for each number of rows
    soak.memory.assert_flat(96 * MIB)


def test_memory_that_grows_is_noticed() -> None:
    memory = Memory([(float(second), 500 * MIB + second * MIB) for second in range(60)])
    assert memory.slope_bytes_per_minute == pytest.approx(60 * MIB)
    with pytest.raises(AssertionError, match=r"60\.00 MiB a minute"):
        memory.assert_flat(8 * MIB)


@pytest.mark.slow
def test_a_request_that_is_left_is_noticed(tmp_path: Path) -> None:
    soak = Soak(tmp_path, "dense", duration_s=1.0, seed=6)
    soak.run()
    soak.assert_nothing_left()
    soak._submit()
    soak.built.engine.step()
    with pytest.raises(AssertionError):
        soak.assert_nothing_left()
    soak.built.tiers.close()
