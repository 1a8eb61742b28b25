"""The tests of `make gpu`: the kernels against their twins, and the engine on them.

Each file runs in a process of its own, several beside each other where there are cores for it:
most of the time goes into compiling kernels, which a core does for one test at a time. A test that
its process dies of, or hangs in, has failed, and a new process goes on behind it.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.gpu.processes import DEVICE_LOST, Ending, read_lines, watch, write_line

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
# the first compiles for a device that need not be there, the others are about this folder
_NOT_FOR_A_DEVICE = tuple(
    f"{FOLDER}/test_{name}.py"
    for name in ("aot", "benches", "gpu_faults", "gpu_peers", "gpu_run", "gpu_targets")
)
_MAX_PROCESSES = 8
_KEPT_OUTPUT = 6000
_LONG = " (long)"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """outcome: "passed", "skipped" (all of the file), "failed", "timed out" (of what is left, some
    may have passed) or "not run"; summary: how many tests did what; output: what failed."""

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


def find_long_checks() -> list[str]:
    """The files with long series of tests, for after the others."""
    marked = [path for path in find_checks() if "mark.verify" in (ROOT / path).read_text("utf-8")]
    return [f"{path}{_LONG}" for path in marked]


def pytest_command(
    paths: Sequence[str], *, is_interpreted: bool, is_long: bool = False,
    options: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Without the options and plugins of pyproject.toml, which a GPU image need not have."""
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "benchmarks/gpu/pytest.ini")]
    command += [f"--rootdir={ROOT}", "-q", "-m", "verify" if is_long else "not verify", *options]
    if is_interpreted:
        command += ["-p", "benchmarks.gpu.bare_image"]
    return [*command, *paths]


def environment() -> dict[str, str]:
    """This process's, with the source roots importable and no plugins but pytest's own."""
    roots = [str(ROOT / root) for root in SOURCE_ROOTS]
    path = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run_checks(
    names: Sequence[str],
    *,
    is_interpreted: bool,
    seconds: float,
    source: str,
    logs: Path,
    on_result: Callable[[CheckResult], None],
    silent_s: float,
) -> None:
    """Run them for at most `seconds`; what is not done by then is stopped and reported so. A test
    may take `silent_s`. A second run with the same folder of logs goes on where the first was
    stopped."""
    end = time.monotonic() + seconds
    processes = max(1, min(_MAX_PROCESSES, (os.cpu_count() or 1) // 2))

    def run(name: str) -> CheckResult:
        log = logs / f"{name.replace('/', '-')}.log"
        return _run(name, is_interpreted, end, source, log, silent_s)

    with ThreadPoolExecutor(processes) as pool:
        for result in pool.map(run, names):
            on_result(result)


def _run(
    name: str, is_interpreted: bool, end: float, source: str, log: Path, silent_s: float
) -> CheckResult:
    started = time.monotonic()
    if started >= end:
        return CheckResult(name, "not run", source=source)
    command = pytest_command(
        [name.removesuffix(_LONG)],
        is_interpreted=is_interpreted,
        is_long=name.endswith(_LONG),
        options=["-p", "benchmarks.gpu.check_log", "--check-log", str(log)],
    )
    _forget_cut_off(log)
    while True:
        num_lines = len(read_lines(log))
        ending = watch(
            command, log, folder=ROOT, environment=environment(), silent_s=silent_s, end=end,
            on_line=lambda line: None,
        )  # fmt: skip
        has_died = ending.is_hung or ending.status == DEVICE_LOST or (ending.status or 0) < 0
        at = _at(log)
        if at is not None and (has_died or ending.status is not None):
            write_line(log, done=at, outcome="failed", error=f"{ending.output}\n{ending}")
        if not has_died or len(read_lines(log)) == num_lines:
            break
    return _result(name, ending, log, source, time.monotonic() - started)


def _at(log: Path) -> str | None:
    """The test that began and has not ended."""
    lines = read_lines(log)
    return str(lines[-1]["case"]) if lines and "case" in lines[-1] else None


def _forget_cut_off(log: Path) -> None:
    """The test that the end of the time stopped is to be run again."""
    at, lines = _at(log), read_lines(log)
    if at is not None:
        log.unlink()
        for line in lines[:-1]:
            write_line(log, **line)


def _result(name: str, ending: Ending, log: Path, source: str, took: float) -> CheckResult:
    ended = [line for line in read_lines(log) if "done" in line]
    counts = Counter(str(line["outcome"]) for line in ended)
    parts = [f"{count} {outcome}" for outcome, count in sorted(counts.items())]
    parts += ["the rest not run"] if ending.status is None else []
    summary = ", ".join(parts) or "no tests"
    output = "\n".join(f"{line['done']}\n{line['error']}" for line in ended if line["error"])
    codes = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED, pytest.ExitCode.TESTS_FAILED)
    if counts["failed"]:
        outcome = "failed"
    elif ending.status is None and not ending.is_hung:
        outcome = "timed out"
    elif ending.status not in codes:
        outcome, output = "failed", f"{ending.output}\n{ending}"
    else:
        outcome = "passed" if counts["passed"] else "skipped"
    return CheckResult(name, outcome, summary, took, source, output[:_KEPT_OUTPUT])
