"""Time the CUDA kernels:

    python -m benchmarks.gpu [BENCH ...] [--part k/n] [--peers FOLDER] [--out FILE]
    python -m benchmarks.gpu [BENCH ...] --interpret

The first needs a CUDA device and writes `benchmarks/results/<device>/<date>.json`; rows that the
file has are skipped, so that it can be filled in parts and after a run that was cut off. The second
needs none: tiny shapes under Triton's interpreter, end to end, for errors and not for times.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import benchmarks.gpu
import torch
from benchmarks.gpu.harness import Case, Ceilings, Row, Setting, interpret_case, time_case
from benchmarks.gpu.results import Results, default_path, print_rows, this_machine
from benchmarks.report import say

from weft_kernels.cuda.timing import copy_bandwidth, matmul_rate

BENCHES = tuple(
    sorted(m.name for m in pkgutil.iter_modules(benchmarks.gpu.__path__) if "bench_" in m.name)
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    benches = options.benches or BENCHES
    if options.interpret:
        # read when a kernel is decorated, so before a bench is imported
        os.environ["TRITON_INTERPRET"] = "1"
        setting = Setting(torch.device("cpu"), torch.float32, is_tiny=True, peers=options.peers)
        return _interpret(benches, setting)
    if not torch.cuda.is_available():
        _parser().error("there is no CUDA device here; --interpret runs without one")
    setting = Setting(torch.device("cuda"), torch.bfloat16, is_tiny=False, peers=options.peers)
    return _measure(benches, setting, options.part, options.out or default_path())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu")
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="k/n", help="1/1 is all")
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
    """The part's cases: every n-th of all, so that parts take about as long as each other."""
    k, n = part
    number = 0
    for bench in benches:
        for case in importlib.import_module(f"benchmarks.gpu.{bench}").cases(setting):
            if number % n == k - 1:
                yield bench, case
            number += 1


def _interpret(benches: Sequence[str], setting: Setting) -> int:
    rows: list[Row] = []
    failed = []
    for bench, case in cases_of(benches, setting):
        try:
            rows.append(interpret_case(bench, case, setting.dtype))
        except Exception:  # the run goes on; the exit code and the list say that it failed
            say(traceback.format_exc())
            failed.append(f"{bench}: {case.key}")
    print_rows("interpreted on tiny shapes: errors, no times", rows)
    return _end(failed)


def _measure(benches: Sequence[str], setting: Setting, part: tuple[int, int], path: Path) -> int:
    ceilings = Ceilings(copy_bandwidth(), matmul_rate())
    results = Results(path)
    results.start_run(this_machine(), ceilings, part=f"{part[0]}/{part[1]}")
    failed = []
    for bench, case in cases_of(benches, setting, part):
        if results.has(bench, case.key):
            continue
        say(f"{bench}: {case.key}")
        try:
            results.add(time_case(bench, case, setting.dtype, ceilings))
        except Exception:  # as above
            say(traceback.format_exc())
            failed.append(f"{bench}: {case.key}")
    print_rows(str(path), results.rows())
    return _end(failed)


def _end(failed: Sequence[str]) -> int:
    for name in failed:
        say(f"failed: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
