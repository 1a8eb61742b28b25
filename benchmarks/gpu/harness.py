"""What the GPU benches share: cases in, rows out.

A bench is a module `bench_<what>.py` with `cases(setting) -> Iterable[Case]`. A case says how to
make fresh random inputs and launch the operator on them, which bytes it must move, how far it is
from its twin, and what else does the same work. `measure` makes a row of it: the time inside a
CUDA graph with inputs that no cache holds (see `weft_kernels.cuda.timing`), beside the roofline of
the bandwidth that a copy reached in the same run.

Without a device, cases are tiny and run under Triton's interpreter: everything is executed and
checked, and nothing is a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal

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
    work done by others, by name; they get inputs of their own. clock: the device's, over a graph of
    many launches ("graph") or of few ("step", for a whole step of a model); or the host's, for what
    ends on the host ("host").
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
    clock: Literal["graph", "step", "host"] = "graph"

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
    are a peer's time over ours. Interpreted rows have no times, and `ran` has the peers that ran.
    source: a digest of the code."""

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
    ran: tuple[str, ...] = ()
    source: str = ""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Row:
        return cls(**{**fields, "ran": tuple(fields["ran"])})


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that has no row, and the end of what it raised or what its process died of."""

    bench: str
    key: str
    operator: str
    shape: Mapping[str, int | str]
    error: str
    source: str = ""

    @property
    def reason(self) -> str:
        """In a line."""
        lines = self.error.strip().splitlines()
        return lines[-1][:200] if lines else "without a word"


def relative_error(got: Tensor, want: Tensor) -> float:
    """`|got - want| / |want|` in float64; NaN wherever `got` has one."""
    difference = got.detach().cpu().double() - want.cpu().double()
    return float(difference.norm() / want.cpu().double().norm().clamp(min=1e-30))


def check_case(case: Case) -> float:
    """The case's error; ValueError where it is above the tolerance or not a number."""
    with np.errstate(all="ignore"):  # see `_interpret`
        error = case.error()
    if not error <= case.tolerance:
        raise ValueError(f"{case.key}: the error is {error:.3g}, above {case.tolerance:.3g}")
    return error


def measure(
    bench: str,
    case: Case,
    dtype: torch.dtype,
    ceilings: Ceilings | None,
    row: Row | None = None,
    on_stage: Callable[[str], None] = lambda name: None,
    on_peer: Callable[[str], None] = lambda name: None,
) -> Iterator[Row]:
    """Check and time the case, then its peers: a row, and after each peer the row with it. A peer
    that fails does not fail the case. `row` is an earlier one, of which only peers are missing;
    `on_peer(name)` is called before each, and `on_stage(name)` before the case's own error and its
    own time. Without ceilings all runs once, and rows have no times.
    """
    if row is None:
        on_stage("error")
        error = check_case(case)
        on_stage("time")
        row = _first_row(bench, case, dtype, ceilings, error)
        yield row
    for name, create in case.peers.items():
        if name in row.peer_us or name in row.failures or (ceilings is None and name in row.ran):
            continue
        on_peer(name)
        row = _with_peer(row, case, name, create, ceilings)
        yield row


def _first_row(
    bench: str, case: Case, dtype: torch.dtype, ceilings: Ceilings | None, error: float
) -> Row:
    if ceilings is None:
        _interpret(case.create)
        return _row(bench, case, dtype, error)
    free_memory()
    timing = _time(case, case.create)
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
    )


def _with_peer(row: Row, case: Case, name: str, create: Create, ceilings: Ceilings | None) -> Row:
    try:
        if ceilings is None:
            _interpret(create)
            return replace(row, ran=(*row.ran, name))
        free_memory()
        microseconds = _time(case, create).median_us
    except Exception as error:  # their code; the row says what it raised
        return replace(row, failures={**row.failures, name: f"{type(error).__name__}: {error}"})
    assert row.microseconds is not None
    return replace(
        row,
        peer_us={**row.peer_us, name: microseconds},
        ratios={**row.ratios, name: microseconds / row.microseconds},
    )


def _interpret(create: Create) -> None:
    # numpy, which interprets, warns of infinities where a device does not
    with np.errstate(all="ignore"):
        create()()


def _time(case: Case, create: Create) -> Timing:
    if case.clock == "host":
        return _time_on_host(create())
    launches = create_launches(create, case.useful_bytes)
    if case.clock == "step":
        return time_launches(launches, num_replays=10, least_launches=len(launches))
    return time_launches(launches)


def _time_on_host(launch: Launch, num_runs: int = 30, num_first: int = 3) -> Timing:
    """Of launches that wait for their result."""
    times = []
    for _ in range(num_first + num_runs):
        started = time.perf_counter()
        launch()
        times.append(1e6 * (time.perf_counter() - started))
    deciles = quantiles(times[num_first:], n=10)
    return Timing(deciles[4], deciles[0], deciles[8])


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
