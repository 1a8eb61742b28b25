"""Write the table of launch configurations: time every candidate of every shape on this GPU.

    python -m weft_kernels.cuda.tune [--operator NAME ...] [--out FILE]

A module of this package takes part by binding a `configs.TuningSpace` to `TUNING`, or several of
them in a tuple. Only the operators that were timed change in the file, which is written after each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from weft_kernels.cuda.aot import operator_modules
from weft_kernels.cuda.configs import (
    PATH,
    Config,
    Launch,
    OperatorConfigs,
    Shape,
    TuningSpace,
    read_table,
    write_table,
)
from weft_kernels.cuda.timing import create_launches, free_memory, time_launches

# microseconds of the launches, which take turns
Measure = Callable[[Sequence[Launch]], float]


def find_spaces() -> dict[str, TuningSpace]:
    """What can be tuned, by operator."""
    spaces = {}
    for module in operator_modules():
        found = getattr(module, "TUNING", ())
        for space in (found,) if isinstance(found, TuningSpace) else found:
            spaces[space.operator] = space
    return spaces


def tune(
    space: TuningSpace, device: torch.device, measure: Measure, tuned_on: str
) -> OperatorConfigs:
    """The fastest candidate of every shape; ValueError for a shape that has none."""
    entries: list[tuple[Shape, Config]] = []
    for shape in space.shapes:
        candidates = space.candidates(shape)
        if not candidates:
            raise ValueError(f"{space.operator} has no candidates for {dict(shape)}")
        inputs = _create_inputs(space, shape, device)
        times = [measure([launch_with(c) for launch_with in inputs]) for c in candidates]
        fastest = min(range(len(candidates)), key=times.__getitem__)
        _say(f"{space.operator} {dict(shape)}: {times[fastest]:.2f} us, {candidates[fastest]}")
        entries.append((shape, candidates[fastest]))
    return OperatorConfigs(tuned_on, tuple(entries))


def _create_inputs(
    space: TuningSpace, shape: Shape, device: torch.device
) -> list[Callable[[Config], Launch]]:
    """On a CUDA device as many as its L2 cache cannot hold, by the memory that the first took."""
    if device.type != "cuda":
        return [space.create_launch(shape, device)]
    free_memory()
    before = torch.cuda.memory_allocated()
    first = space.create_launch(shape, device)
    num_bytes = torch.cuda.memory_allocated() - before
    more = create_launches(lambda: space.create_launch(shape, device), num_bytes)
    return [first, *more]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="weft_kernels.cuda.tune")
    parser.add_argument("--operator", action="append", help="all without; may come several times")
    parser.add_argument("--out", type=Path, default=PATH, help="the table to change")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("tuning times kernels, and there is no CUDA device here")
    spaces = find_spaces()
    chosen = options.operator or list(spaces)
    unknown = sorted(set(chosen) - spaces.keys())
    if unknown:
        parser.error(f"no TUNING for {', '.join(unknown)}; there are {', '.join(spaces)}")
    table = read_table(options.out if options.out.exists() else PATH)
    for operator in chosen:
        table[operator] = tune(
            spaces[operator],
            torch.device("cuda"),
            lambda launches: time_launches(launches).median_us,
            torch.cuda.get_device_name(),
        )
        write_table(options.out, table)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
