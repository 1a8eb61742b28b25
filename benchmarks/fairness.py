"""Fairness between tenants, on the real engine: service while all compete, and what a flood does to
the others' first token.

`shares`: ten tenants always have requests waiting; the first floods the queue and owns 50 adapters,
each other owns one. Service is 1 x prompt + 2 x answer tokens. Two arms on one engine: fair by
tenant, and fair by adapter (each adapter counts as a tenant of its own, as in S-LoRA's scheduler).

`flood`: nine light tenants send at random times, first alone, then beside a tenant that floods.
Their time to the first token may grow by two full steps: the one that runs when a request comes,
and the one that computes its prompt among everything else. A full step has as many sequences as may
run, at least one of them with its prompt; those that only decode are given beside.

    python -m benchmarks.fairness [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks import report
from benchmarks.models import VOCAB_SIZE, quiet_libraries
from benchmarks.servers import build_cpu_engine, register_random_adapters

from weft.engine.bench import percentiles
from weft.engine.build import BuiltEngine
from weft.engine.engine import Engine
from weft.engine.offline import load_adapters
from weft.messages import EngineRequest, SamplingParams

Policy = Literal["by tenant", "by adapter"]
NUM_TENANTS, NUM_FLOOD_ADAPTERS = 10, 50
MAX_RUNNING, MAX_STEP_TOKENS = 32, 512
FLOOD_DEPTH, DEPTH = 80, 8
PROMPT, ANSWER = (16, 96), (16, 96)


@dataclass
class Source:
    """Makes one tenant's requests; lengths and tokens are random, the adapters go round."""

    tenant: str
    digests: Sequence[str]
    rng: random.Random
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def create(self, label: str) -> EngineRequest:
        number = next(self._numbers)
        prompt = tuple(self.rng.randrange(VOCAB_SIZE) for _ in range(self.rng.randint(*PROMPT)))
        sampling = SamplingParams(self.rng.randint(*ANSWER), temperature=0, ignore_eos=True)
        digest = self.digests[number % len(self.digests)]
        return EngineRequest(
            f"{label}/{self.tenant}/{number}", self.tenant, prompt, sampling, digest
        )


def create_sources(digests: Sequence[str], seed: int) -> list[Source]:
    """The first tenant owns all adapters but one for each other tenant."""
    own = digests[NUM_FLOOD_ADAPTERS:]
    sources = [Source("0", digests[:NUM_FLOOD_ADAPTERS], random.Random(seed))]
    return sources + [
        Source(str(i + 1), [digest], random.Random(seed + i + 1)) for i, digest in enumerate(own)
    ]


def as_seen_by(policy: Policy, request: EngineRequest) -> EngineRequest:
    """The request, with whom the scheduler is to be fair to as its tenant."""
    if policy == "by adapter":
        return replace(request, tenant_id=request.adapter_digest or "")
    return request


def tenant_of(request_id: str) -> str:
    return request_id.split("/")[1]


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def bound() -> float:
    """The most by which two tenants' service may differ: see `weft.engine.fairness`."""
    return 2.0 * (MAX_STEP_TOKENS + MAX_RUNNING * (PROMPT[1] + 2 * ANSWER[1]))


@dataclass
class _Shares:
    """One arm: tops the queues up before each step and counts service after it."""

    engine: Engine
    sources: Sequence[Source]
    policy: Policy
    service: Counter[str] = field(default_factory=Counter)
    waiting: Counter[str] = field(default_factory=Counter)
    leads: list[dict[str, float]] = field(default_factory=list)
    open_requests: dict[str, int] = field(default_factory=dict)

    def top_up(self) -> None:
        for source in self.sources:
            depth = FLOOD_DEPTH if source.tenant == "0" else DEPTH
            for _ in range(depth - self.waiting[source.tenant]):
                request = source.create(self.policy)
                self.open_requests[request.request_id] = len(request.prompt_token_ids)
                self.engine.add(as_seen_by(self.policy, request))
                self.waiting[source.tenant] += 1

    def step(self) -> None:
        for output in self.engine.step():
            tenant = tenant_of(output.request_id)
            prompt = self.open_requests.get(output.request_id, 0)
            if prompt:  # its first output: the prompt was computed
                self.open_requests[output.request_id] = 0
                self.waiting[tenant] -= 1
            self.service[tenant] += prompt + 2 * len(output.token_ids)

    def run(self, num_steps: int) -> dict[str, object]:
        for step in range(num_steps + num_steps // 5):
            self.top_up()
            if step == num_steps // 5:  # until here the batch filled up
                self.service.clear()
            self.step()
            if step >= num_steps // 5:
                self.leads.append({s.tenant: float(self.service[s.tenant]) for s in self.sources})
        for request_id in list(self.open_requests):
            self.engine.abort(request_id)
        values = [float(self.service[source.tenant]) for source in self.sources]
        return {
            "policy": self.policy,
            "jain_index": jain(values),
            "flooding_tenants_part": values[0] / sum(values),
            "largest_gap": self._largest_gap(),
        }

    def _largest_gap(self) -> float:
        """Over any pair of tenants and any interval: how far the lead of one moved."""
        gap = 0.0
        for a, b in itertools.combinations([source.tenant for source in self.sources], 2):
            leads = [service[a] - service[b] for service in self.leads]
            gap = max(gap, max(leads) - min(leads))
        return gap


def measure_shares(
    built: BuiltEngine, digests: Sequence[str], num_steps: int
) -> list[dict[str, object]]:
    policies: tuple[Policy, ...] = ("by tenant", "by adapter")
    rows = []
    for policy in policies:
        report.say(f"shares, fair {policy}")
        rows.append(_Shares(built.engine, create_sources(digests, 0), policy).run(num_steps))
    return rows


@dataclass
class _Flood:
    """One arm: light requests by the clock, and a flood beside them or not."""

    engine: Engine
    arrivals: deque[tuple[float, EngineRequest]]
    flood: Source | None
    arrived_s: dict[str, float] = field(default_factory=dict)
    ttft_s: list[float] = field(default_factory=list)
    full_steps_s: list[float] = field(default_factory=list)
    decoding_steps_s: list[float] = field(default_factory=list)
    _flooding: set[str] = field(default_factory=set)

    def run(self) -> None:
        started_s = time.monotonic()
        while self.arrivals or self.arrived_s:
            now_s = time.monotonic() - started_s
            while self.arrivals and self.arrivals[0][0] <= now_s:
                at_s, request = self.arrivals.popleft()
                self.arrived_s[request.request_id] = at_s
                self.engine.add(request)
            while self.flood is not None and len(self._flooding) < MAX_RUNNING + FLOOD_DEPTH:
                request = self.flood.create("flood")
                self._flooding.add(request.request_id)
                self.engine.add(request)
            if self.engine.has_work:
                self._step(started_s)
            elif self.arrivals:
                time.sleep(max(0.0, self.arrivals[0][0] - (time.monotonic() - started_s)))
        for request_id in self._flooding:
            self.engine.abort(request_id)

    def _step(self, started_s: float) -> None:
        begun_s, num_prompt_tokens = time.monotonic(), self.engine.counters.num_prompt_tokens
        outputs = self.engine.step()
        ended_s = time.monotonic()
        if len(self.engine.scheduler.running) >= MAX_RUNNING - 1:
            has_prompt = self.engine.counters.num_prompt_tokens > num_prompt_tokens
            steps_s = self.full_steps_s if has_prompt else self.decoding_steps_s
            steps_s.append(ended_s - begun_s)
        for output in outputs:
            if output.is_last:
                self._flooding.discard(output.request_id)
            arrived_s = self.arrived_s.get(output.request_id)
            if (
                arrived_s is not None
                and output.token_ids
                and output.usage.num_completion_tokens == 1
            ):
                self.ttft_s.append(ended_s - started_s - arrived_s)
            if output.is_last:
                self.arrived_s.pop(output.request_id, None)


def light_arrivals(
    sources: Sequence[Source], rate: float, seconds: float, label: str
) -> deque[tuple[float, EngineRequest]]:
    """Poisson arrivals of all light tenants together, at `rate` requests per second."""
    rng, at_s, arrivals = random.Random(7), 0.0, deque[tuple[float, EngineRequest]]()
    while (at_s := at_s + rng.expovariate(rate)) < seconds:
        arrivals.append((at_s, rng.choice(sources).create(label)))
    return arrivals


def measure_flood(
    built: BuiltEngine, digests: Sequence[str], rate: float, seconds: float
) -> dict[str, object]:
    arms = {}
    for label in ("alone", "flooded"):
        report.say(f"light tenants, {label}")
        flood, *light = create_sources(digests, 1)
        arrivals = light_arrivals(light, rate, seconds, label)
        arm = _Flood(built.engine, arrivals, flood if label == "flooded" else None)
        arm.run()
        arms[label] = arm
    alone, flooded = (percentiles_95(arms[label].ttft_s) for label in ("alone", "flooded"))
    full_step_s = percentiles(arms["flooded"].full_steps_s)["p50"]
    decoding_step_s = percentiles(arms["flooded"].decoding_steps_s)["p50"]
    return {
        "light_requests": len(arms["alone"].ttft_s),
        "ttft_p95_alone_s": alone,
        "ttft_p95_flooded_s": flooded,
        "full_step_p50_s": full_step_s,
        "decoding_step_p50_s": decoding_step_s,
        "added_full_steps": (flooded - alone) / full_step_s,
        "added_decoding_steps": (flooded - alone) / decoding_step_s,
    }


def percentiles_95(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=1500, help="steps of each arm of `shares`")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each arm of `flood`")
    parser.add_argument("--rate", type=float, default=1.5, help="light requests per second")
    parser.add_argument("--json-dir", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as root:
        built = build_cpu_engine(
            Path(root),
            max_running=MAX_RUNNING,
            max_step_tokens=MAX_STEP_TOKENS,
            max_adapters_in_batch=MAX_RUNNING,
            max_model_len=256,
            max_waiting=10_000,
        )
        count = NUM_FLOOD_ADAPTERS + NUM_TENANTS - 1
        digests = register_random_adapters(built, Path(root), count, rank=8)
        load_adapters(built, digests)
        shares = measure_shares(built, digests, options.steps)
        flood = measure_flood(built, digests, options.rate, options.seconds)
        built.tiers.close()
    columns = ("policy", "jain_index", "flooding_tenants_part", "largest_gap")
    report.print_table(
        f"Service of ten backlogged tenants (bound of the gap: {bound():.0f})",
        columns, [[row[column] for column in columns] for row in shares],
    )  # fmt: skip
    report.print_figures("Light tenants beside a flood", flood)
    result = {
        "shares": shares,
        "bound_of_gap": bound(),
        "flood": flood,
        "settings": report.settings(
            model="dense Qwen3 shape of benchmarks.models, float32",
            tenants=NUM_TENANTS, adapters_of_the_flooding_tenant=NUM_FLOOD_ADAPTERS,
            max_running=MAX_RUNNING, max_step_tokens=MAX_STEP_TOKENS, prompt=PROMPT, answer=ANSWER,
            steps=options.steps, light_rate=options.rate, seconds=options.seconds,
        ),
    }  # fmt: skip
    report.write_json(options.json_dir, "fairness", result)


if __name__ == "__main__":
    main()
