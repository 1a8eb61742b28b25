"""What `make gpu` is made of: which tests it runs, that a GPU image has all they import, and which
results it need not make again. The benches themselves run in `test_benches.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.checks import (
    ROOT,
    CheckResult,
    environment,
    find_checks,
    find_long_checks,
    pytest_command,
)
from benchmarks.gpu.harness import Ceilings, Failure, Row, Setting
from benchmarks.gpu.results import Results
from benchmarks.gpu.run import Plan, Run
from benchmarks.gpu.sources import CODE, TESTS, digest_of
from benchmarks.gpu.targets import TARGETS
from benchmarks.gpu.worker import Job

CHECK = CheckResult("tests/test_a.py", "passed", "3 passed", 1.0, "s1")
ROW = Row("bench_small", "op k=1", "op", {"k": 1}, {}, "bfloat16", 8, 0.0, microseconds=2.0)


def test_every_test_file_of_the_kernels_is_run_once() -> None:
    checks = find_checks()
    folder = Path(__file__).parent.relative_to(ROOT)
    files = {str(folder / path.name) for path in Path(__file__).parent.glob("test_*.py")}
    assert len(set(checks)) == len(checks)
    others = ("aot", "benches", "gpu_faults", "gpu_peers", "gpu_run", "gpu_targets")
    assert files - set(checks) == {str(folder / f"test_{name}.py") for name in others}
    assert {name.removesuffix(" (long)") for name in find_long_checks()} < set(checks)
    assert any(check.startswith("tests/engine/cuda/") for check in checks)
    assert all((ROOT / check).is_file() for check in checks)


def test_a_gpu_image_has_what_the_tests_and_benches_import() -> None:
    collect = pytest_command(find_checks(), is_interpreted=True, options=["--collect-only"])
    benches = ",".join(f"benchmarks.gpu.{bench}" for bench in command.BENCHES)
    run = subprocess.run(
        collect, cwd=ROOT, capture_output=True, text=True, check=False,
        env=environment() | {"PYTEST_PLUGINS": benches, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]


def test_what_a_gpu_image_lacks_is_not_found() -> None:
    program = (
        "from importlib.util import find_spec; from benchmarks.gpu import bare_image;"
        "lacking = ['xgrammar', 'hypothesis', 'sqlalchemy']; assert all(map(find_spec, lacking));"
        "bare_image.install(); assert not any(map(find_spec, lacking));"
        "import jinja2, tokenizers"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_results_of_other_code_are_made_again_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "day.json"
    first = Results(path, "code 1")
    first.add(ROW)
    first.add_check(CHECK)
    first.add_check(replace(CHECK, path="tests/test_b.py", outcome="failed"))
    assert Results(path, "code 1").current_rows("bench_small").keys() == {"op k=1"}
    second = Results(path, "code 2")
    assert not second.current_rows("bench_small")
    second.add(replace(ROW, microseconds=1.0))
    assert second.current_rows("bench_small").keys() == {"op k=1"}
    assert [(row.microseconds, row.source) for row in second.rows()] == [(1.0, "code 2")]
    assert second.has_passed("tests/test_a.py", "s1")
    assert not second.has_passed("tests/test_a.py", "s2")
    assert not second.has_passed("tests/test_b.py", "s1")


def test_the_table_has_the_runs_the_tests_and_the_rows(tmp_path: Path) -> None:
    results = Results(tmp_path / "day.json", "code")
    machine = {"device": "some device", "driver": "1", "versions": {"torch": "2.11"}}
    results.start_run(machine, CEILINGS, "1/2")
    results.add_check(CHECK)
    results.add(ROW)
    text = results.write_table().read_text()
    assert "part 1/2; a copy moves 4000 GB/s, a product does 800 TFLOP/s" in text
    assert "| tests/test_a.py | passed | 3 passed |" in text
    assert "| small | op k=1 | 2.00 | - | - | 0.0e+00 |  |" in text


def test_any_change_of_a_source_file_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    file = tmp_path / "code" / "a.py"
    file.write_text("1")
    first = digest_of(["code"], tmp_path)
    file.write_text("2")
    second = digest_of(["code"], tmp_path)
    file.rename(file.with_name("b.py"))
    (tmp_path / "code" / "notes.txt").write_text("no source")
    third = digest_of(["code"], tmp_path)
    assert len({first, second, third}) == 3
    (tmp_path / "code" / "notes.txt").unlink()
    assert digest_of(["code"], tmp_path) == third
    assert digest_of(CODE) != digest_of((*CODE, *TESTS))


class _Phases:
    """What a run does, in its order: stands in for its processes. Tests of `cut` files are stopped
    by the end of their time, and benches of `cut` are not done but for the targets' rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cut: tuple[str, ...] = ()) -> None:
        self.done: list[str] = []
        self.cut = cut
        monkeypatch.setattr(gpu_run, "find_checks", lambda: ["test_a", "test_b"])
        monkeypatch.setattr(gpu_run, "find_long_checks", lambda: ["test_b (long)"])
        monkeypatch.setattr(gpu_run, "run_checks", self._check)
        monkeypatch.setattr(gpu_run, "BenchRun", self._bench)
        monkeypatch.setattr(gpu_run, "TARGET_SHARES", {"bench_y": 0.5, "bench_x": 1.0})

    def _check(self, names: list[str], *, on_result: object, **_: object) -> None:
        assert callable(on_result)
        for name in names:
            self.done.append(name)
            on_result(
                replace(CHECK, path=name, outcome="timed out" if name in self.cut else "passed")
            )

    def _bench(self, job: Job, keeper: Run, *_: object) -> object:
        phases, bench, is_first = self, job.bench, job.only_targets

        class Done:
            def run(self, seconds: float) -> bool:
                phases.done.append(f"{bench}{', targets' * is_first}")
                return bench not in phases.cut

        return Done()


def _create_run(folder: Path, benches: tuple[str, ...], part: tuple[int, int] = (1, 1)) -> Run:
    setting = Setting(torch.device("cpu"), torch.float32, is_tiny=False)
    plan = Plan(tests=True, benches=benches, part=part, seconds=20.0)
    return Run(plan, setting, Results(folder / "day.json", "code"), folder, "s1")


CEILINGS = Ceilings(copy_bandwidth=4e12, matmul_rate=8e14)


def test_what_matters_most_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = _Phases(monkeypatch, cut=("test_a", "bench_y"))
    run = _create_run(tmp_path, ("bench_x", "bench_y"))
    run.measure(CEILINGS)
    assert phases.done == [
        "test_a", "test_b",
        "bench_y, targets", "bench_x, targets",
        "test_a", "test_b (long)",
        "bench_x", "bench_y",
    ]  # fmt: skip
    assert run.left == ["test_a", "bench_y"]
    # what has passed is not run again
    phases.done.clear()
    phases.cut = ()
    again = _create_run(tmp_path, ("bench_x",))
    again.measure(CEILINGS)
    assert phases.done == ["test_a", "bench_x, targets", "bench_x"]
    assert again.left == []


def test_parts_are_all_files_of_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = _Phases(monkeypatch)
    for k in (1, 2):
        _create_run(tmp_path / str(k), (), part=(k, 2)).measure(CEILINGS)
    assert sorted(phases.done) == ["test_a", "test_b", "test_b (long)"]


def test_without_a_bandwidth_there_are_tests_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = _Phases(monkeypatch)
    _create_run(tmp_path, ("bench_x",)).measure(None)
    assert phases.done == ["test_a", "test_b", "test_b (long)"]


def test_a_failed_case_is_no_more_tried_in_this_run_and_late_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    class Fails:
        def __init__(self, job: Job, keeper: Run, *_: object) -> None:
            jobs.append(job)
            if len(jobs) == 1:
                keeper.add_failure(Failure("bench_x", "op k=1", "op", {"k": 1}, "it died"))

        def run(self, seconds: float) -> bool:
            return True

    monkeypatch.setattr(gpu_run, "run_checks", lambda *_, **__: None)
    monkeypatch.setattr(gpu_run, "BenchRun", Fails)
    monkeypatch.setattr(gpu_run, "TARGET_SHARES", {"bench_x": 1.0})
    first = _create_run(tmp_path, ("bench_x",))
    first.measure(CEILINGS)
    _create_run(tmp_path, ("bench_x",)).measure(CEILINGS)
    assert [list(job.skipped) for job in jobs] == [["op k=1"], ["op k=1"], [], []]
    assert list(jobs[2].last) == ["op k=1"]
    assert first.failed == ["bench_x: op k=1: it died"]


@pytest.mark.parametrize("ceilings", [CEILINGS, None])
def test_verdicts_are_printed_last_and_kept(
    ceilings: Ceilings | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure(run: Run, ceilings: Ceilings | None) -> None:
        run.add(ROW)

    machine = {"device": "some device", "driver": "1", "versions": {"torch": "2.11"}}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(command, "_look_at_device", lambda logs: (machine, ceilings))
    monkeypatch.setattr(Run, "measure", measure)
    out = tmp_path / "day.json"
    # a device whose bandwidth cannot be measured is a failure
    assert command.main(["--out", str(out)]) == (0 if ceilings else 1)
    printed = capsys.readouterr().out
    assert printed.index("op k=1") < printed.index("targets") < printed.index("T6 served")
    kept = json.loads(out.read_text())
    assert [row["key"] for row in kept["rows"]] == ["op k=1"]
    assert len(kept["verdicts"]) == len(TARGETS)
    assert {verdict["outcome"] for verdict in kept["verdicts"]} == {"not measured"}


def test_it_says_loudly_that_nothing_is_timed() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "bench_small", "--interpret"], cwd=ROOT,
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("NO CUDA DEVICE IN THIS RUN") == 2
    assert "rms_norm" in run.stdout
    assert "targets" not in run.stdout
