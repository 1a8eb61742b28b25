"""`make gpu`: the tests on the device, then the benches.

    python -m benchmarks.gpu [--part k/n] [--budget-s S] [--peers FOLDER] [--out FILE]
    python -m benchmarks.gpu WHAT ...       of "tests" and the benches, only these

What matters most comes first: the short tests; the rows that the targets are judged by; the long
tests; all other rows. Every file of tests and every bench is a process of its own, so that a crash,
a hang or a lost device costs one test, case or peer. Results go to
`benchmarks/results/<device>/<date>.json`, after each one, and a table beside it. What the file has
of the same code is not done again; what failed is, after the rest.

Without a CUDA device, or with --interpret, everything runs on tiny shapes under Triton's
interpreter: end to end, for errors and not for times, and no file is written.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks.gpu
import torch
from benchmarks.gpu.checks import ROOT, environment
from benchmarks.gpu.harness import Ceilings, Setting
from benchmarks.gpu.processes import watch
from benchmarks.gpu.results import Results, default_path, print_rows, print_verdicts
from benchmarks.gpu.run import Plan, Run
from benchmarks.gpu.sources import CODE, TESTS, digest_of
from benchmarks.report import say

TESTS_NAME = "tests"
# the benches in the order in which their rows are wanted
_BENCH_ORDER = ("bench_engine", "bench_lora", "bench_attention", "bench_moe_lora")
_FOUND = [
    module.name
    for module in pkgutil.iter_modules(benchmarks.gpu.__path__)
    if module.name.startswith("bench_")
]
BENCHES = (*_BENCH_ORDER, *sorted(set(_FOUND) - set(_BENCH_ORDER)))

# `make gpu` in 9 minutes and a part in 8, with the time to start and to write the table
_WHOLE_S, _PART_S = 515.0, 455.0
_INTERPRETED_S = 1800.0
_CEILINGS_S = 60.0
_BANNER = """\

NO CUDA DEVICE IN THIS RUN: kernels are interpreted, on tiny shapes.
Errors show. No times are taken, no target is judged, nothing is written to benchmarks/results.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = set(options.what) - {TESTS_NAME, *BENCHES}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    # so that a run that is told to end takes its processes with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    is_interpreted = options.interpret or not torch.cuda.is_available()
    default_s = _PART_S if options.part != (1, 1) else _WHOLE_S
    if is_interpreted:
        default_s = _INTERPRETED_S
    seconds = default_s if options.budget_s is None else options.budget_s
    peers = None if options.peers is None else options.peers.resolve()
    with tempfile.TemporaryDirectory(prefix="weft-gpu-") as folder:

        def plan() -> Plan:
            return Plan(
                tests=not options.what or TESTS_NAME in options.what,
                benches=[b for b in BENCHES if not options.what or b in options.what],
                part=options.part,
                seconds=seconds - (time.monotonic() - started),
            )

        if is_interpreted:
            return _interpret(plan(), peers, Path(folder))
        machine, ceilings = _look_at_device(Path(folder))
        out = options.out or default_path(str(machine["device"]))
        return _measure(plan(), peers, Path(folder), machine, ceilings, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    what = f"of {TESTS_NAME}, {', '.join(BENCHES)}; all by default"
    parser.add_argument("what", nargs="*", metavar="WHAT", help=what)
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="k/n", help="1/1 is all")
    parser.add_argument("--budget-s", type=float, metavar="S", help="be done after S seconds")
    parser.add_argument("--peers", type=Path, help="the folder with others' released kernels")
    parser.add_argument("--out", type=Path, help="the file of results to fill")
    parser.add_argument("--interpret", action="store_true", help="tiny, without a device or times")
    return parser


def _part(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"a part is k/n with 1 <= k <= n, not {text!r}")
    return int(k), int(n)


def _interpret(plan: Plan, peers: Path | None, logs: Path) -> int:
    say(_BANNER)
    # read when a kernel is decorated, in the processes of this run; nor do these see a device
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    setting = Setting(torch.device("cpu"), torch.float32, is_tiny=True, peers=peers)
    run = Run(plan, setting, None, logs, tests_source="")
    run.interpret()
    print_rows("interpreted on tiny shapes: errors, no times", run.rows.values())
    say(_BANNER)
    return _end(run, [f"{name}: out of time" for name in run.left])


def _look_at_device(logs: Path) -> tuple[dict[str, Any], Ceilings | None]:
    """The machine, and what it reaches; None where that could not be measured. In a process of its
    own: this one must outlive a lost device."""
    log, found = logs / "ceilings.log", dict[str, Any]()
    ending = watch(
        [sys.executable, "-m", "benchmarks.gpu.ceilings", str(log)], log, folder=ROOT,
        environment=environment(), silent_s=_CEILINGS_S, end=time.monotonic() + _CEILINGS_S,
        on_line=lambda line: found.update(line),
    )  # fmt: skip
    if "machine" not in found:
        raise RuntimeError(f"the device cannot be used: {ending}\n{ending.output}")
    if "ceilings" not in found:
        say(f"the device's bandwidth was not measured: {ending}\n{ending.output}")
        return found["machine"], None
    return found["machine"], Ceilings(**found["ceilings"])


def _measure(
    plan: Plan, peers: Path | None, logs: Path, machine: dict[str, Any],
    ceilings: Ceilings | None, path: Path,
) -> int:  # fmt: skip
    results = Results(path, digest_of(CODE))
    results.start_run(machine, ceilings, part=f"{plan.part[0]}/{plan.part[1]}")
    setting = Setting(torch.device("cuda"), torch.bfloat16, is_tiny=False, peers=peers)
    run = Run(plan, setting, results, logs, digest_of((*CODE, *TESTS)))
    run.measure(ceilings)
    print_rows(str(path), run.rows.values())
    code = _end(run, [] if ceilings else ["the device's bandwidth"])
    say(f"written: {path} and {results.write_table()}")
    if run.left:
        say(f"left for another run of the same: {', '.join(run.left)}")
    print_verdicts(results.verdicts())
    return code


def _end(run: Run, others: Sequence[str]) -> int:
    failed = [*run.failed, *others]
    for name in failed:
        say(f"failed: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
