"""S-LoRA's synthetic workload over more and more registered adapters, all through the real tiers.

The trace is S-LoRA's own (benchmarks/trace.py there): seed 42, adapter `int(power(alpha) * n)`,
lengths uniform, gaps gamma with coefficient of variation cv (1 = Poisson). alpha = 1 is uniform
over the adapters, smaller is more skewed. Arrivals, lengths and prompts do not depend on n.

Each n has three arms, each of them saturated (all requests at once) and open-loop (by the clock):

    cold      a fresh engine: adapters come from the store, are verified, go to host and device
    warm      the same again: what was used before is in the host tier
    control   the same requests over as few adapters as are in use at a time, all on the device
              before the start and none of them ever leaving it: the same number of distinct
              adapters in a step without any tier at work

`backlogged_ratio` is warm over control of the saturated runs while requests wait, the best of
`--repeats` each, in turn: what registering n adapters costs beyond having so many different ones in
a step. `throughput_ratio` is the same of whole runs. A quarter of their steps comes after the last
request has started; how many they are depends on which requests were last, and the arms differ in
that, since those whose adapter is there go first.

    python -m benchmarks.slora_trace [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import report
from benchmarks.models import VOCAB_SIZE, quiet_libraries
from benchmarks.open_loop import Arrival, Outcome, add_workload_options, drive
from benchmarks.servers import build_cpu_engine, register_random_adapters

from weft.engine.build import BuiltEngine
from weft.engine.config import MIB
from weft.engine.offline import load_adapters
from weft.messages import EngineRequest, SamplingParams

NAME = "slora_trace"
ARMS = ("cold", "warm", "control")


@dataclass(frozen=True, slots=True)
class Item:
    """One request of the trace; lengths in tokens."""

    at_s: float
    adapter: int
    input_len: int
    output_len: int


def create_trace(options: argparse.Namespace, num_adapters: int) -> list[Item]:
    """The draws in S-LoRA's order, from the same generator."""
    rng = np.random.RandomState(options.seed)
    count = int(options.rate * options.duration)
    adapters = (rng.power(options.alpha, count) * num_adapters).astype(int)
    (least_in, most_in), (least_out, most_out) = options.input_len, options.output_len
    inputs = rng.randint(least_in, most_in, count)
    outputs = rng.randint(least_out, most_out, count)
    gaps = rng.gamma(1 / options.cv**2, options.cv**2 / options.rate, count)
    times = np.cumsum(gaps)
    return [
        Item(float(at_s), int(adapter), int(num_in), int(num_out))
        for at_s, adapter, num_in, num_out in zip(times, adapters, inputs, outputs, strict=True)
    ]


def fold(adapters: Sequence[int], num_resident: int) -> list[int]:
    """The same sequence over at most `num_resident` adapters: whoever is new takes the place of the
    one that came last the longest ago. Any stretch of the sequence with no more than `num_resident`
    distinct adapters has as many of them as before."""
    places: OrderedDict[int, int] = OrderedDict()
    folded = []
    for adapter in adapters:
        if adapter in places:
            places.move_to_end(adapter)
        else:
            full = len(places) == num_resident
            places[adapter] = places.popitem(last=False)[1] if full else len(places)
        folded.append(places[adapter])
    return folded


def create_arrivals(
    trace: Sequence[Item], digests: Sequence[str], label: str, *, saturated: bool
) -> list[Arrival]:
    """`digests[i]` is the adapter of `trace[i]`."""
    rng = random.Random(0)
    arrivals = []
    for i, (item, digest) in enumerate(zip(trace, digests, strict=True)):
        prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(item.input_len))
        sampling = SamplingParams(item.output_len, temperature=0, ignore_eos=True)
        # the salt keeps a run from finding the prompts of the one before in a prefix cache
        request = EngineRequest(f"{label}-{i}", "bench", prompt, sampling, digest, cache_salt=label)
        arrivals.append(Arrival(0.0 if saturated else item.at_s, request))
    return arrivals


class Arms:
    """The three arms for one number of registered adapters."""

    def __init__(self, options: argparse.Namespace, root: Path, registered: Sequence[str]) -> None:
        self._options, self._root = options, root
        self._trace = create_trace(options, len(registered))
        indexes = [item.adapter for item in self._trace]
        self.traced = [registered[i] for i in indexes]
        self.folded = [registered[i] for i in fold(indexes, options.resident)]

    def _build(self) -> BuiltEngine:
        options = self._options
        return build_cpu_engine(
            self._root,
            max_running=options.max_running,
            max_adapters_in_batch=options.max_running,
            adapter_bytes=options.adapter_mib * MIB,
            host_adapter_bytes=options.host_mib * MIB,
        )

    def _run(self, built: BuiltEngine, label: str, *, saturated: bool) -> Outcome:
        digests = self.folded if label.startswith("control") else self.traced
        arrivals = create_arrivals(self._trace, digests, label, saturated=saturated)
        return drive(built.engine, arrivals)

    def measure(self) -> dict[str, Any]:
        tiered, control = self._build(), self._build()
        load_adapters(control, set(self.folded))
        runs: dict[str, list[Outcome]] = {arm: [] for arm in ARMS}
        runs["cold"].append(self._run(tiered, "cold", saturated=True))
        for i in range(self._options.repeats):
            runs["control"].append(self._run(control, f"control-{i}", saturated=True))
            runs["warm"].append(self._run(tiered, f"warm-{i}", saturated=True))
        timed = {
            "control": self._run(control, "control-timed", saturated=False).figures(),
            "warm": self._run(tiered, "warm-timed", saturated=False).figures(),
        }
        tiered.tiers.close()
        # the fresh engine of the open loop's cold arm
        fresh = self._build()
        timed["cold"] = self._run(fresh, "cold-timed", saturated=False).figures()
        for built in (control, fresh):
            built.tiers.close()
        best = {arm: max(runs[arm], key=lambda run: run.output_tokens_per_s) for arm in ARMS}
        return {
            "distinct_in_trace": len(set(self.traced)),
            "resident_in_control": len(set(self.folded)),
            "backlogged_ratio": _backlogged(runs["warm"]) / _backlogged(runs["control"]),
            "throughput_ratio": _ratio(best, "warm"),
            "cold_throughput_ratio": _ratio(best, "cold"),
            "saturated": {arm: best[arm].figures() for arm in ARMS},
            "open_loop": {arm: timed[arm] for arm in ARMS},
        }


def _backlogged(runs: Sequence[Outcome]) -> float:
    return max(run.backlogged_tokens_per_s for run in runs)


def _ratio(best: Mapping[str, Outcome], arm: str) -> float:
    return best[arm].output_tokens_per_s / best["control"].output_tokens_per_s


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    built = build_cpu_engine(root)
    report.say(f"writing {max(options.adapters)} adapters")
    registered = register_random_adapters(
        built, root, max(options.adapters), options.rank,
        lambda done: report.say(f"  {done}") if done % 500 == 0 else None,
    )  # fmt: skip
    built.tiers.close()
    points = []
    for num_adapters in options.adapters:
        arms = Arms(options, root, registered[:num_adapters])
        points.append({"registered": num_adapters, **arms.measure()})
        ratio = points[-1]["throughput_ratio"]
        backlogged = points[-1]["backlogged_ratio"]
        report.say(
            f"{num_adapters} adapters: {backlogged:.3f} of the control's throughput while requests "
            f"wait, {ratio:.3f} of the whole run's"
        )
    first, last = points[0]["saturated"]["warm"], points[-1]["saturated"]["warm"]
    return {
        "worst_backlogged_ratio": min(point["backlogged_ratio"] for point in points),
        "worst_throughput_ratio": min(point["throughput_ratio"] for point in points),
        "last_over_first": last["output_tokens_per_s"] / first["output_tokens_per_s"],
        "points": points,
    }


def print_result(result: Mapping[str, Any]) -> None:
    rows = []
    for point in result["points"]:
        for load in ("saturated", "open_loop"):
            for arm in ARMS:
                run = point[load][arm]
                rows.append((
                    point["registered"], load, arm, run["output_tokens_per_s"],
                    run["ttft_s"]["p50"], run["ttft_s"]["p90"],
                    run["distinct_adapters_per_step"]["mean"], run["running_per_step"]["mean"],
                ))  # fmt: skip
    columns = ("registered", "load", "arm", "tokens/s", "TTFT s p50", "p90", "distinct", "running")
    report.print_table("S-LoRA's trace", columns, rows)
    ratios = {
        f"{point['registered']} registered, warm over control, {label}": point[name]
        for point in result["points"]
        for name, label in (("backlogged_ratio", "backlogged"), ("throughput_ratio", "whole run"))
    }
    figures = {**ratios, "last over first n, warm": result["last_over_first"]}
    report.print_figures("Throughput, saturated", figures)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, nargs="+", default=[5, 20, 100, 500, 2000])
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second, open loop")
    parser.add_argument("--duration", type=float, default=16.0, help="seconds of arrivals")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--cv", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--resident", type=int, default=48, help="at most, in the control arm")
    parser.add_argument("--adapter-mib", type=int, default=40, help="device memory for adapters")
    parser.add_argument("--host-mib", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=2)
    add_workload_options(parser, seed=42)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as root:
        result = measure(options, Path(root))
    own = {key: value for key, value in vars(options).items() if key != "json_dir"}
    result["settings"] = report.settings(**own, model="qwen3 dense, hidden 512", dtype="float32")
    print_result(result)
    report.write_json(options.json_dir, NAME, result)


if __name__ == "__main__":
    main()
