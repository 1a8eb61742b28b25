"""What the GPU benches share: cases in, rows out.

A bench is a module `bench_<what>.py` with `cases(setting) -> Iterable[Case]`. A case says how to
make fresh random inputs and launch the operator on them, which bytes it must move, how far it is
from its twin, and what else does the same work. `time_case` makes a row of it: the time inside a
CUDA graph with inputs that no cache holds (see `weft_kernels.cuda.timing`), beside the roofline of
the bandwidth that a copy reached in the same run.

Without a device, cases are tiny and run under Triton's interpreter: everything is executed and
checked, and nothing is a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weft_kernels.cuda.configs import Launch
from weft_kernels.cuda.timing import Timing, create_launches, free_memory, time_launches

Create = Callable[[], Launch]


@dataclass(frozen=True, slots=True)
class Setting:
    """What cases are made for. `peers`: the folder that holds released kernels of others."""

    device: torch.device
    dtype: torch.dtype
    is_tiny: bool
    peers: Path | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement to make.

    create: fresh random inputs, and a call that launches the operator on them once; it must not
    depend on what the launch before left. useful_bytes: each input read once, each output written
    once; flops where arithmetic could bound. error: `relative_error` of the operator, on inputs of
    its own, against the float64 twin or a float64 product; at most `tolerance`. peers: the same
    work done by others, by name; they get inputs of their own. is_step: a whole step of a model,
    which a few launches measure.
    """

    operator: str
    shape: Mapping[str, int | str]
    create: Create
    useful_bytes: int
    error: Callable[[], float]
    tolerance: float = 1e-2
    flops: int = 0
    config: Mapping[str, int] = field(default_factory=dict)
    peers: Mapping[str, Create] = field(default_factory=dict)
    is_step: bool = False

    @property
    def key(self) -> str:
        """What tells a row from all others of its bench."""
        return " ".join([self.operator, *(f"{k}={v}" for k, v in self.shape.items())])


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this device reached in this run: bytes and floating-point operations a second."""

    copy_bandwidth: float
    matmul_rate: float

    def roofline_us(self, case: Case) -> float:
        """The least time for the case's bytes and operations."""
        return 1e6 * max(case.useful_bytes / self.copy_bandwidth, case.flops / self.matmul_rate)


@dataclass(frozen=True, slots=True)
class Row:
    """A case, measured. `peer_us` of a peer that failed is absent and `failures` says why; ratios
    are a peer's time over ours. Interpreted rows have no times. source: a digest of the code."""

    bench: str
    key: str
    operator: str
    shape: Mapping[str, int | str]
    config: Mapping[str, int]
    dtype: str
    useful_bytes: int
    error: float
    microseconds: float | None = None
    low_us: float | None = None
    high_us: float | None = None
    gb_per_s: float | None = None
    copy_gb_per_s: float | None = None
    roofline_us: float | None = None
    roofline_fraction: float | None = None
    peer_us: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


def relative_error(got: Tensor, want: Tensor) -> float:
    """`|got - want| / |want|` in float64; NaN wherever `got` has one."""
    difference = got.detach().cpu().double() - want.cpu().double()
    return float(difference.norm() / want.cpu().double().norm().clamp(min=1e-30))


def check_case(case: Case) -> float:
    """The case's error; ValueError where it is above the tolerance or not a number."""
    error = case.error()
    if not error <= case.tolerance:
        raise ValueError(f"{case.key}: the error is {error:.3g}, above {case.tolerance:.3g}")
    return error


def interpret_case(bench: str, case: Case, dtype: torch.dtype) -> Row:
    """Run everything of the case once; a row without times."""
    # numpy, which interprets, warns of infinities where a device does not
    with np.errstate(all="ignore"):
        for create in (case.create, *case.peers.values()):
            create()()
        return _row(bench, case, dtype, check_case(case))


def time_case(bench: str, case: Case, dtype: torch.dtype, ceilings: Ceilings) -> Row:
    """Check the case, then time it and its peers; a peer that fails does not fail the case."""
    error = check_case(case)
    free_memory()
    timing = _time(case, case.create)
    peer_us, failures = {}, {}
    for name, create in case.peers.items():
        free_memory()
        try:
            peer_us[name] = _time(case, create).median_us
        except Exception as error_of_peer:  # their code; the row says what it raised
            failures[name] = f"{type(error_of_peer).__name__}: {error_of_peer}"
    roofline_us = ceilings.roofline_us(case)
    return _row(
        bench,
        case,
        dtype,
        error,
        microseconds=timing.median_us,
        low_us=timing.low_us,
        high_us=timing.high_us,
        gb_per_s=case.useful_bytes / timing.median_us / 1e3,
        copy_gb_per_s=ceilings.copy_bandwidth / 1e9,
        roofline_us=roofline_us,
        roofline_fraction=roofline_us / timing.median_us,
        peer_us=peer_us,
        ratios={name: us / timing.median_us for name, us in peer_us.items()},
        failures=failures,
    )


def _time(case: Case, create: Create) -> Timing:
    launches = create_launches(create, case.useful_bytes)
    if case.is_step:
        return time_launches(launches, num_replays=10, least_launches=len(launches))
    return time_launches(launches)


def _row(bench: str, case: Case, dtype: torch.dtype, error: float, **times: Any) -> Row:
    return Row(
        bench,
        case.key,
        case.operator,
        dict(case.shape),
        dict(case.config),
        str(dtype).removeprefix("torch."),
        case.useful_bytes,
        error,
        **times,
    )
