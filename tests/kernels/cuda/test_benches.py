"""The GPU benches run end to end on tiny shapes, and their rows are kept and told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu.__main__ import BENCHES, cases_of
from benchmarks.gpu.harness import (
    Case,
    Ceilings,
    Row,
    Setting,
    check_case,
    interpret_case,
    relative_error,
)
from benchmarks.gpu.results import Results

MACHINE = {"device": "some device", "driver": "1", "versions": {"torch": "2.11"}}
CEILINGS = Ceilings(copy_bandwidth=4e12, matmul_rate=8e14)


@pytest.fixture
def setting(device: torch.device) -> Setting:
    return Setting(device, torch.float32, is_tiny=True)


def _case(shape: int = 1, error: float = 0.0) -> Case:
    return Case("op", {"k": shape}, lambda: lambda: None, 4_000_000, error=lambda: error)


@pytest.mark.parametrize("bench", BENCHES)
def test_a_bench_runs_and_is_right(bench: str, setting: Setting) -> None:
    rows = [interpret_case(name, case, setting.dtype) for name, case in cases_of([bench], setting)]
    assert rows
    assert len({row.key for row in rows}) == len(rows)
    assert all(row.microseconds is None for row in rows)


def test_parts_are_all_cases_and_share_none(setting: Setting) -> None:
    whole = [case.key for _, case in cases_of(["bench_small"], setting)]
    parts = [
        [case.key for _, case in cases_of(["bench_small"], setting, part=(k, 3))] for k in (1, 2, 3)
    ]
    assert sorted(key for part in parts for key in part) == sorted(whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_result_with_nan_or_too_large_an_error_is_refused() -> None:
    with pytest.raises(ValueError, match=r"op k=1: the error is 0\.5, above 0\.01"):
        check_case(_case(error=0.5))
    poisoned = relative_error(torch.tensor([1.0, float("nan")]), torch.ones(2))
    with pytest.raises(ValueError, match="the error is nan"):
        check_case(_case(error=poisoned))


def test_the_roofline_is_the_larger_of_bytes_and_operations() -> None:
    assert CEILINGS.roofline_us(_case()) == pytest.approx(1.0)
    assert CEILINGS.roofline_us(replace(_case(), flops=1_600_000_000)) == pytest.approx(2.0)


def test_rows_outlive_a_run_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "some-device" / "day.json"
    first = Results(path)
    first.start_run(MACHINE, CEILINGS, "1/2")
    row = Row("bench_small", "op k=1", "op", {"k": 1}, {}, "bfloat16", 8, 0.0, microseconds=2.0)
    first.add(row)
    second = Results(path)
    second.start_run(MACHINE, CEILINGS, "2/2")
    assert second.has("bench_small", "op k=1")
    assert not second.has("bench_small", "op k=2")
    assert not second.has("bench_lora", "op k=1")
    second.add(replace(row, key="op k=2"))
    assert [r.key for r in Results(path).rows()] == ["op k=1", "op k=2"]
    assert Results(path).rows()[0] == row


def test_rows_of_two_machines_do_not_share_a_file(tmp_path: Path) -> None:
    first = Results(tmp_path / "day.json")
    first.start_run(MACHINE, CEILINGS, "1/1")
    first.add(Row("bench_small", "op", "op", {}, {}, "bfloat16", 8, 0.0))
    with pytest.raises(ValueError, match="measured with driver 1, not 2: name another file"):
        Results(tmp_path / "day.json").start_run({**MACHINE, "driver": "2"}, CEILINGS, "1/1")
