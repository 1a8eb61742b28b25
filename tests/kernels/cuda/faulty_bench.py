"""A bench for `test_gpu_faults.py`, whose cases and peers end their process in every way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping

from benchmarks.gpu import device
from benchmarks.gpu.harness import Case, Setting

from weft_kernels.cuda.configs import Launch


def cases(setting: Setting) -> Iterator[Case]:
    for name, fault in FAULTS.items():
        yield _case(name, fault, {})
    for name, fault in FAULTS.items():
        yield _case(f"peer-{name}", _pass, {"first": _pass, "bad": fault, "last": _pass})


def _case(name: str, fault: Callable[[], None], peers: Mapping[str, Callable[[], None]]) -> Case:
    def create(work: Callable[[], None]) -> Callable[[], Launch]:
        return lambda: lambda: work()

    return Case(
        "op", {"fault": name}, create(fault), 8, error=lambda: 0.0,
        peers={peer: create(work) for peer, work in peers.items()},
    )  # fmt: skip


def _pass() -> None:
    """What works."""


def _raise() -> None:
    raise RuntimeError("out of resources: shared memory")


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    time.sleep(3600)


def _lose_the_device() -> None:
    device.is_lost = lambda: True
    raise RuntimeError("an illegal memory access was encountered")


FAULTS = {
    "none": _pass, "raise": _raise, "crash": _crash, "hang": _hang, "lose": _lose_the_device,
    "none-again": _pass,
}  # fmt: skip
