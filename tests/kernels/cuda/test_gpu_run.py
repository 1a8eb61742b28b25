"""What `make gpu` is made of: which tests it runs, that a GPU image has all they import, and which
results it need not make again. The benches themselves run in `test_benches.py`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.checks import (
    ROOT,
    CheckResult,
    environment,
    find_checks,
    pytest_command,
    run_checks,
)
from benchmarks.gpu.harness import Ceilings, Row, Setting
from benchmarks.gpu.results import Results
from benchmarks.gpu.sources import CODE, TESTS, digest_of

CHECK = CheckResult("tests/test_a.py", "passed", "3 passed", 1.0, "s1")
ROW = Row("bench_small", "op k=1", "op", {"k": 1}, {}, "bfloat16", 8, 0.0, microseconds=2.0)


def test_every_test_file_of_the_kernels_is_run_once() -> None:
    checks = find_checks()
    folder = Path(__file__).parent.relative_to(ROOT)
    files = {str(folder / path.name) for path in Path(__file__).parent.glob("test_*.py")}
    assert len(set(checks)) == len(checks)
    assert files - set(checks) == {
        str(folder / "test_aot.py"),
        str(folder / "test_gpu_run.py"),
    }
    assert any(check.startswith("tests/engine/cuda/") for check in checks)
    assert all((ROOT / check).is_file() for check in checks)


def test_a_gpu_image_has_what_the_tests_and_benches_import() -> None:
    program = (
        "from benchmarks.gpu import bare_image; bare_image.install();"
        "import importlib;"
        "from benchmarks.gpu.__main__ import BENCHES;"
        "[importlib.import_module(f'benchmarks.gpu.{bench}') for bench in BENCHES]"
    )
    collect = pytest_command(find_checks(), is_interpreted=True, options=["--collect-only"])
    for arguments in ([sys.executable, "-c", program], collect):
        run = subprocess.run(
            arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
        )
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


def _run(folder: Path, text: str, seconds: float = 60.0) -> CheckResult:
    path = folder / "test_it.py"
    path.write_text(text)
    results: list[CheckResult] = []
    run_checks(
        [str(path)], is_interpreted=True, seconds=seconds, source="s", on_result=results.append
    )
    (result,) = results
    return result


def test_a_file_of_tests_passes_fails_or_is_stopped(tmp_path: Path) -> None:
    passed = _run(tmp_path, "def test_a():\n    pass\n")
    assert (passed.outcome, passed.summary.partition(" in ")[0]) == ("passed", "1 passed")
    failed = _run(tmp_path, "def test_a():\n    assert 'this' == 'that'\n")
    assert failed.outcome == "failed"
    assert "'this' == 'that'" in failed.output
    # a plugin that the image lacks is not there for a test, either
    assert _run(tmp_path, "import hypothesis\n").outcome == "failed"
    assert _run(tmp_path, "import time\ntime.sleep(60)\n", seconds=2.0).outcome == "timed out"
    assert _run(tmp_path, "", seconds=0.0).outcome == "not run"


def test_results_of_other_code_are_made_again_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "day.json"
    first = Results(path, "code 1")
    first.add(ROW)
    first.add_check(CHECK)
    first.add_check(replace(CHECK, path="tests/test_b.py", outcome="failed"))
    assert Results(path, "code 1").has("bench_small", "op k=1")
    second = Results(path, "code 2")
    assert not second.has("bench_small", "op k=1")
    second.add(replace(ROW, microseconds=1.0))
    assert second.has("bench_small", "op k=1")
    assert [(row.microseconds, row.source) for row in second.rows()] == [(1.0, "code 2")]
    assert second.has_passed("tests/test_a.py", "s1")
    assert not second.has_passed("tests/test_a.py", "s2")
    assert not second.has_passed("tests/test_b.py", "s1")


def test_the_table_has_the_runs_the_tests_and_the_rows(tmp_path: Path) -> None:
    results = Results(tmp_path / "day.json", "code")
    machine = {"device": "some device", "driver": "1", "versions": {"torch": "2.11"}}
    results.start_run(machine, Ceilings(copy_bandwidth=4e12, matmul_rate=8e14), "1/2")
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


def test_benches_take_turns(device: torch.device) -> None:
    setting = Setting(device, torch.float32, is_tiny=True)
    benches = ["bench_small", "bench_attention"]
    names = [bench for bench, _ in command.cases_of(benches, setting)]
    assert names[:4] == benches * 2


def test_it_says_loudly_that_nothing_is_timed() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "bench_small", "--interpret"], cwd=ROOT,
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("NO CUDA DEVICE IN THIS RUN") == 2
    assert "rms_norm" in run.stdout
