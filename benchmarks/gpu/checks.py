"""The tests of `make gpu`: the kernels against their twins, and the engine on them.

Each file runs in a process of its own, several beside each other where there are cores for it:
most of the time goes into compiling kernels, which a core does for one test at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("platform", "adapters", "kernels", ".")
FOLDER, ENGINE_FOLDER = "tests/kernels/cuda", "tests/engine/cuda"
# what would hurt most comes first, and so does what takes long; then the others by name
_FIRST = (
    f"{FOLDER}/test_lora.py",
    f"{FOLDER}/test_attention.py",
    f"{FOLDER}/test_expert_lora.py",
    f"{FOLDER}/test_moe.py",
)
# the first compiles for a device that need not be there; the other is about this file
_NOT_FOR_A_DEVICE = (f"{FOLDER}/test_aot.py", f"{FOLDER}/test_gpu_run.py")
_MAX_PROCESSES = 8
_KEPT_OUTPUT = 4000


@dataclass(frozen=True, slots=True)
class CheckResult:
    """outcome: "passed", "skipped" (all of the file), "failed", "timed out" or "not run"; summary:
    pytest's last line; output: the end of what a file that failed printed."""

    path: str
    outcome: str
    summary: str = ""
    seconds: float = 0.0
    source: str = ""
    output: str = ""


def find_checks() -> list[str]:
    """The test files, in the order in which they are started."""
    engine, kernels = (
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("test_*.py"))
        for folder in (ENGINE_FOLDER, FOLDER)
    )
    left = [path for path in kernels if path not in (*_FIRST, *_NOT_FOR_A_DEVICE)]
    return [*engine, *_FIRST, *left]


def pytest_command(
    paths: Sequence[str], *, is_interpreted: bool, options: Sequence[str] = ()
) -> list[str]:
    """Without the options and plugins of pyproject.toml, which a GPU image need not have. A device
    runs the long series as well."""
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "benchmarks/gpu/pytest.ini")]
    command += [f"--rootdir={ROOT}", "-q", *options]
    if is_interpreted:
        command += ["-p", "benchmarks.gpu.bare_image", "-m", "not verify"]
    return [*command, *paths]


def environment() -> dict[str, str]:
    """This process's, with the source roots importable and no plugins but pytest's own."""
    roots = [str(ROOT / root) for root in SOURCE_ROOTS]
    path = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run_checks(
    paths: Sequence[str],
    *,
    is_interpreted: bool,
    seconds: float,
    source: str,
    on_result: Callable[[CheckResult], None],
) -> None:
    """Run them for at most `seconds`; what is not done by then is stopped and reported so."""
    end = time.monotonic() + seconds
    processes = max(1, min(_MAX_PROCESSES, (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(processes) as pool:
        for result in pool.map(lambda path: _run(path, is_interpreted, end, source), paths):
            on_result(result)


def _run(path: str, is_interpreted: bool, end: float, source: str) -> CheckResult:
    started = time.monotonic()
    if started >= end:
        return CheckResult(path, "not run", source=source)
    try:
        run = subprocess.run(
            pytest_command([path], is_interpreted=is_interpreted), cwd=ROOT, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=end - started,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if error.stdout else ""
        took = time.monotonic() - started
        return CheckResult(path, "timed out", "", took, source, output[-_KEPT_OUTPUT:])
    took = time.monotonic() - started
    lines = run.stdout.strip().splitlines()
    summary = lines[-1] if lines else ""
    if run.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        outcome = "passed" if run.returncode == pytest.ExitCode.OK else "skipped"
        return CheckResult(path, outcome, summary, took, source)
    return CheckResult(path, "failed", summary, took, source, run.stdout[-_KEPT_OUTPUT:])
