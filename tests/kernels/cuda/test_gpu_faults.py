"""What `make gpu` does when a kernel fails to compile, crashes, hangs, or takes the device along:
it names what did it and loses nothing else."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import device
from benchmarks.gpu.checks import ROOT, CheckResult, environment, run_checks
from benchmarks.gpu.harness import Failure, Row, Setting
from benchmarks.gpu.processes import Ending, Line, watch
from benchmarks.gpu.supervisor import BenchRun
from benchmarks.gpu.worker import Job

ENVIRONMENT = environment() | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
SETTING = Setting(torch.device("cpu"), torch.float32, is_tiny=True)
MODULE = "tests.kernels.cuda.faulty_bench"


@dataclass
class Kept:
    rows: dict[str, Row] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.rows[str(row.shape["fault"])] = row

    def add_failure(self, failure: Failure) -> None:
        self.failures[str(failure.shape.get("fault", failure.key))] = failure


def run_bench(folder: Path, module: str = MODULE, seconds: float = 200.0) -> tuple[Kept, bool]:
    kept = Kept()
    job = Job(module, SETTING, None)
    run = BenchRun(job, kept, folder / "bench", ROOT, ENVIRONMENT, silent_s=3.0)
    return kept, run.run(seconds)


@pytest.mark.slow
def test_every_fault_costs_one_case_or_one_peer(tmp_path: Path) -> None:
    kept, is_done = run_bench(tmp_path)
    assert is_done
    reasons = {
        "raise": "out of resources: shared memory",
        "crash": "died of SIGSEGV",
        "hang": "stopped: it did not go on",
        "lose": "an illegal memory access",
    }
    assert kept.failures.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in kept.failures[name].reason
    whole = {"none", "none-again", "peer-none", "peer-none-again"}
    assert kept.rows.keys() == whole | {f"peer-{name}" for name in reasons}
    for name, row in kept.rows.items():
        peers = ("first", "bad", "last") if name in whole else ("first", "last")
        assert row.ran == (peers if name.startswith("peer-") else ())
        assert list(row.failures) == ([] if name in whole else ["bad"])
    for name, reason in reasons.items():
        assert reason in kept.rows[f"peer-{name}"].failures["bad"]


@pytest.mark.slow
def test_a_bench_that_cannot_begin_fails_as_a_whole(tmp_path: Path) -> None:
    kept, is_done = run_bench(tmp_path, "tests.kernels.cuda.no_such_bench")
    assert is_done
    assert "No module named" in kept.failures["all cases"].error
    assert "ended with status 1" in kept.failures["all cases"].reason


@pytest.mark.slow
def test_what_time_is_too_short_for_has_not_failed(tmp_path: Path) -> None:
    kept, is_done = run_bench(tmp_path, seconds=0.3)
    assert not is_done
    assert kept.failures == {}


FAULTY_TESTS = """
import os, signal, time
import pytest
from benchmarks.gpu import device

def test_passes(): pass
def test_fails(): assert 'this' == 'that'
def test_crashes(): os.kill(os.getpid(), signal.SIGSEGV)
def test_passes_behind_a_crash(): pass
def test_hangs(): time.sleep(3600)
def test_loses_the_device():
    device.is_lost = lambda: True
    raise RuntimeError('an illegal memory access')
def test_is_skipped(): pytest.skip('')
def test_passes_at_the_end(): pass
"""


def check(folder: Path, text: str, seconds: float = 60.0, silent_s: float = 3.0) -> CheckResult:
    path = folder / "test_it.py"
    path.write_text(text)
    results: list[CheckResult] = []
    run_checks(
        [str(path)], is_interpreted=True, seconds=seconds, source="s", logs=folder,
        on_result=results.append, silent_s=silent_s,
    )  # fmt: skip
    (result,) = results
    return result


@pytest.mark.slow
def test_every_fault_costs_one_test(tmp_path: Path) -> None:
    result = check(tmp_path, FAULTY_TESTS)
    assert (result.outcome, result.summary) == ("failed", "4 failed, 3 passed, 1 skipped")
    for reason in (
        "'this' == 'that'",
        "died of SIGSEGV",
        "stopped: it did not go on",
        "an illegal memory access",
    ):
        assert reason in result.output


@pytest.mark.slow
def test_a_file_of_tests_passes_fails_or_is_stopped(tmp_path: Path) -> None:
    def run(name: str, text: str, seconds: float = 60.0) -> CheckResult:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return check(folder, text, seconds, silent_s=60.0)

    passed = run("passed", "def test_a():\n    pass\n")
    assert (passed.outcome, passed.summary) == ("passed", "1 passed")
    # a plugin that the image lacks is not there for a test, either
    foreign = run("foreign", "import hypothesis\n")
    assert foreign.outcome == "failed"
    assert "hypothesis" in foreign.output
    assert run("none", "", seconds=0.0).outcome == "not run"
    cut = "import time\ndef test_a():\n    pass\ndef test_b():\n    time.sleep(60)\n"
    stopped = run("stopped", cut, seconds=8.0)
    assert (stopped.outcome, stopped.summary) == ("timed out", "1 passed, the rest not run")
    # the next run goes on with what was cut off
    again = run("stopped", cut.replace("60", "0"))
    assert (again.outcome, again.summary) == ("passed", "2 passed")


def test_a_device_is_lost_when_each_use_of_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert not device.is_lost()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not device.is_lost()
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert device.is_lost()


def test_a_process_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']);"
        "from benchmarks.gpu.processes import write_line; from pathlib import Path;"
        "write_line(Path(sys.argv[1]), child=child.pid); time.sleep(3600)"
    )
    lines: list[Line] = []

    def run(silent_s: float, seconds: float) -> Ending:
        log = tmp_path / "log"
        return watch(
            [sys.executable, "-c", program, str(log)], log, folder=ROOT, environment=ENVIRONMENT,
            silent_s=silent_s, end=time.monotonic() + seconds, on_line=lines.append,
        )  # fmt: skip

    assert run(silent_s=2.0, seconds=60.0).is_hung
    assert not run(silent_s=60.0, seconds=2.0).is_hung
    assert len(lines) == 2
    for line in lines:
        assert not _is_running(line["child"])


def _is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
