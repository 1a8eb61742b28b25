"""Continuous batching against static batching over offered load, on one engine.

Requests with random prompts of mixed lengths for several adapters arrive as a Poisson process, the
same ones for both policies. Static: up to `--max-running` of the waiting requests are one batch,
and the next one starts when the last of them has ended. Continuous: Weft's own scheduler. Rates are
fractions of the requests a second that the engine completes when all are there at once.

    python -m benchmarks.static_vs_continuous [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.models import VOCAB_SIZE, quiet_libraries
from benchmarks.open_loop import Arrival, add_workload_options, drive
from benchmarks.servers import build_cpu_engine, register_random_adapters

from weft.engine.build import BuiltEngine
from weft.engine.offline import load_adapters
from weft.messages import EngineRequest, SamplingParams

POLICIES = ("static", "continuous")
NAME = "static_vs_continuous"
RANK = 16


def create_arrivals(
    options: argparse.Namespace, digests: Sequence[str], rate: float, label: str
) -> list[Arrival]:
    """`--requests` requests at `rate` a second (infinite: all at once); lengths uniform from the
    bounds, both included. The same seed gives the same requests at every rate."""
    rng, clock = random.Random(options.seed), random.Random(options.seed + 1)
    now_s, arrivals = 0.0, []
    for i in range(options.requests):
        sampling = SamplingParams(rng.randint(*options.output_len), temperature=0, ignore_eos=True)
        prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(*options.input_len)))
        digest = digests[i % len(digests)] if digests else None
        # the salt keeps a run from finding the prompts of the one before in a prefix cache
        request = EngineRequest(f"{label}-{i}", "bench", prompt, sampling, digest, cache_salt=label)
        arrivals.append(Arrival(now_s, request))
        now_s += clock.expovariate(rate) if rate != float("inf") else 0.0
    return arrivals


def measure(options: argparse.Namespace, root: Path) -> dict[str, object]:
    built = build_cpu_engine(
        root, max_running=options.max_running, max_adapters_in_batch=max(1, options.adapters)
    )
    digests = register_random_adapters(built, root, options.adapters, RANK)
    load_adapters(built, digests)
    everything = create_arrivals(options, digests, float("inf"), "all")
    drive(built.engine, everything[: options.max_running])
    again = create_arrivals(options, digests, float("inf"), "capacity")
    capacity = len(again) / drive(built.engine, again).wall_s
    points = []
    for load in options.loads:
        rate = load * capacity
        point = {"load": load, "offered_requests_per_s": rate}
        points.append(point | _both(built, options, digests, rate))
        report.say(f"load {load:g} ({rate:.3g} requests/s) done")
    built.tiers.close()
    return {"capacity_requests_per_s": capacity, "points": points}


def _both(
    built: BuiltEngine, options: argparse.Namespace, digests: Sequence[str], rate: float
) -> dict[str, Any]:
    figures = {}
    for policy in POLICIES:
        arrivals = create_arrivals(options, digests, rate, f"{policy}-{rate}")
        static_batch = options.max_running if policy == "static" else None
        figures[policy] = drive(built.engine, arrivals, static_batch).figures()
    return figures


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Throughput, time to first token and normalised latency over offered load, in one picture."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    rates = [point["offered_requests_per_s"] for point in result["points"]]
    for policy, colour in zip(POLICIES, ("tab:red", "tab:blue"), strict=True):
        runs = [point[policy] for point in result["points"]]
        throughput = [run["output_tokens_per_s"] for run in runs]
        axes[0].plot(rates, throughput, marker="o", color=colour, label=policy)
        for axis, key, scale in ((axes[1], "ttft_s", 1), (axes[2], "normalised_latency_s", 1000)):
            for which, style in (("p50", "-"), ("p99", "--")):
                values = [run[key][which] * scale for run in runs]
                label = f"{policy} {which}"
                axis.plot(rates, values, style, marker="o", color=colour, label=label)
    titles = ("output tokens/s", "time to first token, s", "latency per output token, ms")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="offered requests/s")
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylim(0)
    axes[1].set_yscale("log")
    axes[2].set_yscale("log")
    figure.savefig(path)
    pyplot.close(figure)


def print_result(result: Mapping[str, Any]) -> None:
    rows = []
    for point in result["points"]:
        for policy in POLICIES:
            run = point[policy]
            ttft, latency = run["ttft_s"], run["normalised_latency_s"]
            cells = [point["load"], point["offered_requests_per_s"], policy]
            cells += [run["output_tokens_per_s"]]
            cells += [1000 * latency[key] for key in ("mean", "p50", "p99")]
            rows.append(cells + [ttft[key] for key in ("mean", "p50", "p99")])
    columns = ["load", "requests/s", "policy", "tokens/s"]
    columns += ["ms/token mean", "p50", "p99", "TTFT s mean", "p50", "p99"]
    report.print_table("Static against continuous batching", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.25, 0.5, 0.7, 0.85, 1.0, 1.3])
    parser.add_argument("--requests", type=int, default=200, help="for each load and policy")
    parser.add_argument("--adapters", type=int, default=8)
    add_workload_options(parser, seed=0)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as root:
        result = measure(options, Path(root))
    own = {key: value for key, value in vars(options).items() if key != "json_dir"}
    result["settings"] = report.settings(**own, rank=RANK, model="qwen3 dense, hidden 512")
    print_result(result)
    report.write_json(options.json_dir, NAME, result)
    if options.json_dir is not None:
        plot(result, report.output_path(options.json_dir, NAME, "svg"))


if __name__ == "__main__":
    main()
