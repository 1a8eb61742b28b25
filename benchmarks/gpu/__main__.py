"""`make gpu`: the tests on the device, then the benches.

    python -m benchmarks.gpu [--part k/n] [--budget-s S] [--peers FOLDER] [--out FILE]
    python -m benchmarks.gpu WHAT ...       of "tests" and the benches, only these

Results go to `benchmarks/results/<device>/<date>.json`, after each one, and a table beside it. What
the file has of the same code is not done again, so that it can be filled in parts, and after a run
that was cut off or ran out of its seconds. What matters most comes first.

Without a CUDA device, or with --interpret, everything runs on tiny shapes under Triton's
interpreter: end to end, for errors and not for times, and no file is written.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import benchmarks.gpu
import torch
from benchmarks.gpu import bare_image
from benchmarks.gpu.checks import CheckResult, find_checks, run_checks
from benchmarks.gpu.harness import Case, Ceilings, Row, Setting, interpret_case, time_case
from benchmarks.gpu.results import Results, default_path, print_rows, this_machine
from benchmarks.gpu.sources import CODE, TESTS, digest_of
from benchmarks.report import say

from weft_kernels.cuda.timing import copy_bandwidth, matmul_rate

TESTS_NAME = "tests"
# the benches take turns in this order
_BENCH_ORDER = ("bench_engine", "bench_lora", "bench_attention", "bench_moe_lora")
_FOUND = [m.name for m in pkgutil.iter_modules(benchmarks.gpu.__path__) if "bench_" in m.name]
BENCHES = (*_BENCH_ORDER, *sorted(set(_FOUND) - set(_BENCH_ORDER)))

# `make gpu` in 9 minutes and a part in 8, with the time to start and to finish the last case
_WHOLE_S, _PART_S = 500.0, 440.0
_INTERPRETED_S = 1800.0
# what the tests may take of that, so that a first run brings figures as well
_TESTS_SHARE = 0.45
_BANNER = """\

NO CUDA DEVICE IN THIS RUN: kernels are interpreted, on tiny shapes.
Errors show. No times are taken, and nothing is written to benchmarks/results.
"""


@dataclass(frozen=True, slots=True)
class _Run:
    """What to do, in which part, until when (monotonic seconds)."""

    tests: bool
    benches: Sequence[str]
    part: tuple[int, int]
    started: float
    seconds: float

    @property
    def seconds_left(self) -> float:
        return self.started + self.seconds - time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = set(options.what) - {TESTS_NAME, *BENCHES}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    is_interpreted = options.interpret or not torch.cuda.is_available()
    default_s = _PART_S if options.part != (1, 1) else _WHOLE_S
    if is_interpreted:
        default_s = _INTERPRETED_S
    run = _Run(
        tests=not options.what or TESTS_NAME in options.what,
        benches=[b for b in BENCHES if not options.what or b in options.what],
        part=options.part,
        started=time.monotonic(),
        seconds=default_s if options.budget_s is None else options.budget_s,
    )
    if not is_interpreted:
        setting = Setting(torch.device("cuda"), torch.bfloat16, is_tiny=False, peers=options.peers)
        return _measure(run, setting, options.out or default_path())
    # read when a kernel is decorated, so before a bench is imported
    os.environ["TRITON_INTERPRET"] = "1"
    # nor do the tests see a device
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    bare_image.install()
    setting = Setting(torch.device("cpu"), torch.float32, is_tiny=True, peers=options.peers)
    return _interpret(run, setting)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    what = f"of {TESTS_NAME}, {', '.join(BENCHES)}; all by default"
    parser.add_argument("what", nargs="*", metavar="WHAT", help=what)
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="k/n", help="1/1 is all")
    parser.add_argument("--budget-s", type=float, metavar="S", help="start nothing after S seconds")
    parser.add_argument("--peers", type=Path, help="the folder with others' released kernels")
    parser.add_argument("--out", type=Path, help="the file of results to fill")
    parser.add_argument("--interpret", action="store_true", help="tiny, without a device or times")
    return parser


def _part(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"a part is k/n with 1 <= k <= n, not {text!r}")
    return int(k), int(n)


def cases_of(
    benches: Sequence[str], setting: Setting, part: tuple[int, int] = (1, 1)
) -> Iterator[tuple[str, Case]]:
    """The part's cases, the benches by turns. A part is every n-th of all, so that parts take about
    as long as each other."""
    k, n = part
    for number, item in enumerate(_in_turns(benches, setting)):
        if number % n == k - 1:
            yield item


def _in_turns(benches: Sequence[str], setting: Setting) -> Iterator[tuple[str, Case]]:
    left = {
        bench: iter(importlib.import_module(f"benchmarks.gpu.{bench}").cases(setting))
        for bench in benches
    }
    while left:
        for bench, cases in list(left.items()):
            case = next(cases, None)
            if case is None:
                del left[bench]
            else:
                yield bench, case


def _interpret(run: _Run, setting: Setting) -> int:
    say(_BANNER)
    results: list[CheckResult] = []
    _run_tests(run, [], results, source="", is_interpreted=True)
    failed = [
        f"{check.path}: {check.outcome}"
        for check in results
        if check.outcome not in ("passed", "skipped")
    ]
    rows: list[Row] = []
    for bench, case in cases_of(run.benches, setting, run.part):
        if run.seconds_left <= 0:
            failed.append("the benches: out of time")
            break
        try:
            rows.append(interpret_case(bench, case, setting.dtype))
        except Exception:  # the run goes on; the exit code and the list say that it failed
            say(traceback.format_exc())
            failed.append(f"{bench}: {case.key}")
    print_rows("interpreted on tiny shapes: errors, no times", rows)
    say(_BANNER)
    return _end(failed)


def _measure(run: _Run, setting: Setting, path: Path) -> int:
    code, tests = digest_of(CODE), digest_of((*CODE, *TESTS))
    results = Results(path, code)
    ceilings = Ceilings(copy_bandwidth(), matmul_rate())
    results.start_run(this_machine(), ceilings, part=f"{run.part[0]}/{run.part[1]}")
    checks: list[CheckResult] = []
    done = [path for path in find_checks() if results.has_passed(path, tests)]
    _run_tests(run, done, checks, source=tests, is_interpreted=False, keep=results)
    failed = [f"{check.path}: {check.outcome}" for check in checks if check.outcome == "failed"]
    num_left = sum(check.outcome in ("timed out", "not run") for check in checks)
    keys: set[tuple[str, str]] = set()
    for bench, case in cases_of(run.benches, setting, run.part):
        if results.has(bench, case.key):
            continue
        if run.seconds_left <= 0:
            num_left += 1
            continue
        say(f"{bench}: {case.key}")
        try:
            results.add(time_case(bench, case, setting.dtype, ceilings))
            keys.add((bench, case.key))
        except Exception:  # as above
            say(traceback.format_exc())
            failed.append(f"{bench}: {case.key}")
    print_rows(str(path), [row for row in results.rows() if (row.bench, row.key) in keys])
    say(f"written: {path} and {results.write_table()}")
    if num_left:
        say(f"{num_left} test files and cases are left: run the same again to go on")
    return _end(failed)


def _run_tests(
    run: _Run, done: Sequence[str], results: list[CheckResult], *, source: str,
    is_interpreted: bool, keep: Results | None = None,
) -> None:  # fmt: skip
    """The part's test files, but those done; results are added, and kept if so wanted."""
    if not run.tests:
        return
    k, n = run.part
    paths = [path for path in find_checks()[k - 1 :: n] if path not in done]
    share = _TESTS_SHARE if run.benches and not is_interpreted else 1.0

    def take(result: CheckResult) -> None:
        results.append(result)
        if keep is not None and result.outcome != "not run":
            keep.add_check(result)
        say(f"{result.path}: {result.outcome} {result.summary}")
        if result.output:
            say(result.output)

    seconds = share * run.seconds_left
    run_checks(paths, is_interpreted=is_interpreted, seconds=seconds, source=source, on_result=take)


def _end(failed: Sequence[str]) -> int:
    for name in failed:
        say(f"failed: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
