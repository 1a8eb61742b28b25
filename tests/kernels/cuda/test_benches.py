"""The GPU benches run end to end on tiny shapes, and their rows are kept and told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu.__main__ import BENCHES
from benchmarks.gpu.harness import (
    Case,
    Ceilings,
    Failure,
    Row,
    Setting,
    check_case,
    measure,
    relative_error,
)
from benchmarks.gpu.results import Results
from benchmarks.gpu.worker import Job, cases_of

MACHINE = {"device": "some device", "driver": "1", "versions": {"torch": "2.11"}}
CEILINGS = Ceilings(copy_bandwidth=4e12, matmul_rate=8e14)
ROW = Row("bench_small", "op k=1", "op", {"k": 1}, {}, "bfloat16", 8, 0.0, microseconds=2.0)


@pytest.fixture
def setting(device: torch.device) -> Setting:
    return Setting(device, torch.float32, is_tiny=True)


def job_of(bench: str, setting: Setting, part: tuple[int, int] = (1, 1)) -> Job:
    return Job(f"benchmarks.gpu.{bench}", setting, None, part)


def _case(shape: int = 1, error: float = 0.0) -> Case:
    return Case("op", {"k": shape}, lambda: lambda: None, 4_000_000, error=lambda: error)


@pytest.mark.parametrize("bench", BENCHES)
def test_a_bench_runs_and_is_right(bench: str, setting: Setting) -> None:
    cases = list(cases_of(job_of(bench, setting)))
    rows = [list(measure(bench, case, setting.dtype, None))[-1] for case in cases]
    assert rows
    assert len({row.key for row in rows}) == len(rows)
    for case, row in zip(cases, rows, strict=True):
        assert row.microseconds is None
        assert (row.failures, row.ran) == ({}, tuple(case.peers))


def test_parts_are_all_cases_and_share_none(setting: Setting) -> None:
    def keys(part: tuple[int, int]) -> list[str]:
        return [case.key for case in cases_of(job_of("bench_small", setting, part))]

    parts = [keys((k, 3)) for k in (1, 2, 3)]
    assert sorted(key for part in parts for key in part) == sorted(keys((1, 1)))
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


def test_a_row_that_lacks_peers_gets_these_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 8.0])
    monkeypatch.setattr("benchmarks.gpu.harness.free_memory", lambda: None)

    def time_it(case: Case, create: object) -> object:
        return type("Timing", (), {"median_us": next(times)})

    def fail() -> Iterator[None]:
        raise RuntimeError("cannot compile")

    monkeypatch.setattr("benchmarks.gpu.harness._time", time_it)
    peers = {name: lambda: lambda: None for name in ("known", "first", "second")}
    known = replace(ROW, peer_us={"known": 1.0}, failures={"lost": "it died"})
    case = replace(_case(), peers={"lost": lambda: lambda: None, **peers})
    begun: list[str] = []
    rows = list(measure("bench_small", case, torch.bfloat16, CEILINGS, known, on_peer=begun.append))
    assert begun == ["first", "second"]
    assert [row.ratios for row in rows] == [{"first": 1.5}, {"first": 1.5, "second": 4.0}]
    assert rows[-1].microseconds == ROW.microseconds


def test_rows_outlive_a_run_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "some-device" / "day.json"
    first = Results(path)
    first.start_run(MACHINE, CEILINGS, "1/2")
    first.add(ROW)
    second = Results(path)
    second.start_run(MACHINE, CEILINGS, "2/2")
    assert second.current_rows("bench_small") == {"op k=1": ROW}
    assert second.current_rows("bench_lora") == {}
    second.add(replace(ROW, key="op k=2"))
    assert [r.key for r in Results(path).rows()] == ["op k=1", "op k=2"]
    assert Results(path).rows()[0] == ROW


def test_a_case_that_failed_is_kept_until_it_has_a_row(tmp_path: Path) -> None:
    path = tmp_path / "day.json"
    failure = Failure("bench_small", "op k=1", "op", {"k": 1}, "it died\nof SIGSEGV")
    Results(path, "code").add_failure(failure)
    assert Results(path, "other code").current_failures() == []
    results = Results(path, "code")
    assert [f.reason for f in results.current_failures()] == ["of SIGSEGV"]
    assert "| bench_small | op k=1 | of SIGSEGV |" in results.write_table().read_text()
    results.add(ROW)
    assert results.current_failures() == []


def test_rows_of_two_machines_do_not_share_a_file(tmp_path: Path) -> None:
    first = Results(tmp_path / "day.json")
    first.start_run(MACHINE, CEILINGS, "1/1")
    first.add(ROW)
    with pytest.raises(ValueError, match="measured with driver 1, not 2: name another file"):
        Results(tmp_path / "day.json").start_run({**MACHINE, "driver": "2"}, CEILINGS, "1/1")
