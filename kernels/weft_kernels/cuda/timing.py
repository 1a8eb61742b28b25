"""How long a launch takes on a CUDA device, as it runs inside a step's graph.

Several launches on different inputs, together larger than the L2 cache, are captured in one CUDA
graph; the graph is replayed and timed with events. So a launch finds neither its inputs in the
cache nor a gap that Python makes, and its time has what a step pays: launch, ramp and tail.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, TypeVar

import torch

from weft_kernels.cuda.configs import Launch

Inputs = TypeVar("Inputs")

_LEAST_LAUNCHES = 20
_MOST_INPUTS = 256
# of these milliseconds of work before the first measurement: the clocks rise only under load
_WARM_UP_MS = 20.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one launch: the median of the replays, and their first and last decile."""

    median_us: float
    low_us: float
    high_us: float


def create_launches(create: Callable[[], Inputs], bytes_per_launch: int) -> list[Inputs]:
    """What `create` makes, as many as it takes to touch three times the L2 cache's size."""
    cache_bytes = torch.cuda.get_device_properties().L2_cache_size
    num_inputs = -(-3 * cache_bytes // max(bytes_per_launch, 1))
    return [create() for _ in range(min(max(num_inputs, 2), _MOST_INPUTS))]


def time_launches(
    launches: Sequence[Launch], num_replays: int = 50, least_launches: int = _LEAST_LAUNCHES
) -> Timing:
    """The time of one of the launches, which run one after another, at least `least_launches` in
    a replay."""
    rounds = -(-least_launches // len(launches))
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # compiles what is not compiled, makes handles and workspaces
        for launch in launches:
            launch()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for launch in launches:
                launch()
    warm_up_ms = 0.0
    while warm_up_ms < _WARM_UP_MS:
        # a graph without work must not keep the loop going
        warm_up_ms += max(_replay(graph, 1)[0], 0.01)
    per_launch = 1e3 / (rounds * len(launches))
    times = [ms * per_launch for ms in _replay(graph, num_replays)]
    deciles = quantiles(times, n=10)
    del graph
    return Timing(deciles[4], deciles[0], deciles[8])


def _replay(graph: torch.cuda.CUDAGraph, num_replays: int) -> list[float]:
    """Milliseconds of each replay. All are queued before the device is waited for: otherwise each
    would have the time that the host takes to launch a graph on an idle device."""
    create: Any = torch.cuda.Event  # its constructor has no annotations
    events = [(create(enable_timing=True), create(enable_timing=True)) for _ in range(num_replays)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [float(start.elapsed_time(end)) for start, end in events]


def copy_bandwidth() -> float:
    """Bytes a second that a large copy reads and writes, on this device, now."""
    num_bytes = 1 << 30
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timing = time_launches([lambda: target.copy_(source)])
    return 2 * num_bytes / (timing.median_us * 1e-6)


def matmul_rate() -> float:
    """Floating-point operations a second of a large bfloat16 product, on this device, now."""
    size = 8192
    a, b = torch.randn(2, size, size, device="cuda").to(torch.bfloat16)
    out = torch.empty_like(a)
    timing = time_launches([lambda: torch.mm(a, b, out=out)])
    return 2 * size**3 / (timing.median_us * 1e-6)


def free_memory() -> None:
    """Give back what finished cases held, so that the next one's inputs fit."""
    gc.collect()
    torch.cuda.empty_cache()
