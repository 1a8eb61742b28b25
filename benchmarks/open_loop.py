"""Requests that arrive by the clock, whether or not the engine keeps up, and what became of them.

Times are monotonic seconds. Latency counts from the arrival, so time in a queue is in it.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weft.engine.bench import percentiles
from weft.engine.engine import Engine
from weft.messages import EngineOutput, EngineRequest


def add_workload_options(parser: argparse.ArgumentParser, seed: int) -> None:
    """The options of every benchmark of such requests; `seed` is the default."""
    for name in ("--input-len", "--output-len"):
        parser.add_argument(name, type=int, nargs=2, default=[8, 128], metavar=("LEAST", "MOST"))
    parser.add_argument("--max-running", type=int, default=32)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--json-dir", type=Path)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it comes, in seconds from the start."""

    at_s: float
    request: EngineRequest


@dataclass(slots=True)
class Served:
    """One request's times, in seconds from the start."""

    arrived_s: float
    first_token_s: float = 0.0
    finished_s: float = 0.0
    num_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrived_s

    @property
    def normalised_latency_s(self) -> float:
        """Seconds from arrival to end, per output token (as Orca and vLLM report it)."""
        return (self.finished_s - self.arrived_s) / self.num_tokens


@dataclass(slots=True)
class Outcome:
    """One run. `num_distinct` and `num_running` have an entry for each step that ran anything.
    `backlogged_s` and `backlogged_tokens` count up to the last step that left requests waiting."""

    served: dict[str, Served] = field(default_factory=dict)
    num_distinct: list[int] = field(default_factory=list)
    num_running: list[int] = field(default_factory=list)
    wall_s: float = 0.0
    backlogged_s: float = 0.0
    backlogged_tokens: int = 0

    @property
    def backlogged_tokens_per_s(self) -> float:
        """Output tokens a second while requests wait; 0 where none ever did. What comes after
        depends on which of them happened to be last."""
        return self.backlogged_tokens / self.backlogged_s if self.backlogged_s else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        return sum(s.num_tokens for s in self.served.values()) / self.wall_s

    @property
    def mean_distinct(self) -> float:
        return sum(self.num_distinct) / len(self.num_distinct)

    @property
    def ttft_s(self) -> dict[str, float]:
        return percentiles([s.ttft_s for s in self.served.values()])

    def figures(self) -> dict[str, object]:
        served = list(self.served.values())
        return {
            "requests": len(served),
            "wall_s": self.wall_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "backlogged_tokens_per_s": self.backlogged_tokens_per_s,
            "requests_per_s": len(served) / self.wall_s,
            "ttft_s": self.ttft_s,
            "normalised_latency_s": percentiles([s.normalised_latency_s for s in served]),
            "distinct_adapters_per_step": percentiles(self.num_distinct),
            "running_per_step": percentiles(self.num_running),
            "steps": len(self.num_running),
        }


class _Drive:
    """One run of `drive`."""

    def __init__(self, engine: Engine, arrivals: Sequence[Arrival]) -> None:
        self.engine = engine
        self.pending = deque(sorted(arrivals, key=lambda arrival: arrival.at_s))
        self.held: deque[EngineRequest] = deque()
        self.adapter_of = {a.request.request_id: a.request.adapter_digest for a in arrivals}
        self.num_finished = 0
        self.outcome = Outcome()
        self.started_s = time.monotonic()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.started_s

    def receive(self) -> None:
        while self.pending and self.pending[0].at_s <= self.now_s:
            arrival = self.pending.popleft()
            self.outcome.served[arrival.request.request_id] = Served(arrival.at_s)
            self.held.append(arrival.request)

    def admit(self, static_batch: int | None) -> None:
        if static_batch is not None and self.engine.has_work:
            return
        for _ in range(min(len(self.held), static_batch or len(self.held))):
            self.engine.add(self.held.popleft())

    def step(self) -> None:
        outputs = self.engine.step()
        now_s = self.now_s
        ran = {req.request_id for req in self.engine.scheduler.running}
        for output in outputs:
            self._take(output, now_s)
            ran.add(output.request_id)
        if len(self.engine.scheduler.waiting):
            self.outcome.backlogged_s = now_s
            self.outcome.backlogged_tokens = sum(
                served.num_tokens for served in self.outcome.served.values()
            )
        if ran:
            self.outcome.num_running.append(len(ran))
            digests = {self.adapter_of[request_id] for request_id in ran} - {None}
            self.outcome.num_distinct.append(len(digests))
        else:
            time.sleep(0.001)  # all that waits waits for an adapter on its way

    def _take(self, output: EngineOutput, now_s: float) -> None:
        if output.error is not None:
            raise RuntimeError(f"{output.request_id}: {output.error}")
        served = self.outcome.served[output.request_id]
        if output.token_ids and served.num_tokens == 0:
            served.first_token_s = now_s
        served.num_tokens += len(output.token_ids)
        if output.finish_reason is not None:
            served.finished_s = now_s
            self.num_finished += 1

    def end(self) -> Outcome:
        self.outcome.wall_s = max(s.finished_s for s in self.outcome.served.values())
        return self.outcome


def drive(engine: Engine, arrivals: Sequence[Arrival], static_batch: int | None = None) -> Outcome:
    """Run all arrivals to the end.

    `static_batch` None: each request goes to the engine when it arrives (continuous batching).
    Otherwise up to so many of those that wait go in at once, and nothing follows until the last of
    them has ended: what a server without continuous batching does. Each request's latency still
    ends with its own last token, not with the batch's.
    """
    run = _Drive(engine, arrivals)
    while run.pending or run.held or engine.has_work:
        run.receive()
        run.admit(static_batch)
        if engine.has_work:
            run.step()
        elif run.pending:
            time.sleep(max(0.0, run.pending[0].at_s - run.now_s))
    return run.end()


def drive_users(engine: Engine, requests: Sequence[EngineRequest], num_users: int) -> Outcome:
    """The requests in this order, `num_users` at a time: each comes when one before it has ended
    (a closed loop)."""
    run = _Drive(engine, [Arrival(0.0, request) for request in requests])
    arrivals, run.pending = run.pending, deque()
    while arrivals or engine.has_work:
        while arrivals and len(run.outcome.served) - run.num_finished < num_users:
            request = arrivals.popleft().request
            run.outcome.served[request.request_id] = Served(run.now_s)
            engine.add(request)
        run.step()
    return run.end()
