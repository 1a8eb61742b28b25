"""More adapters in use than the device has room for: what that does to the time to first token.

The device has room for `--room` adapters. `--users` of them each send a request as soon as their
last one has ended, so that as many always run or wait; requests go round robin over `--in-use`
adapters. The first arm uses as many adapters as have room, the others more, with the same prompts
and lengths. All adapters are in host memory before the start.

`ttft_ratio` is the median time to first token of an arm over the first arm's, the median of
`--repeats` rounds in which the arms take turns.

    python -m benchmarks.thrash [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.models import VOCAB_SIZE, quiet_libraries
from benchmarks.open_loop import Outcome, add_workload_options, drive_users
from benchmarks.servers import build_cpu_engine, register_random_adapters

from weft.engine.build import BuiltEngine
from weft.engine.config import MIB
from weft.engine.offline import load_adapters
from weft.messages import EngineRequest, SamplingParams

NAME = "thrash"
# the target: median time to first token, over that of the first arm
MAX_TTFT_RATIO = 3.0


def create_requests(
    options: argparse.Namespace, digests: Sequence[str], label: str
) -> list[EngineRequest]:
    """The same in each arm, but for the adapters, which come in turn."""
    rng = random.Random(options.seed)
    requests = []
    for i in range(options.requests):
        prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(*options.input_len)))
        num_out = rng.randint(*options.output_len)
        requests.append(
            EngineRequest(
                f"{label}-{i}", "bench", prompt,
                SamplingParams(num_out, temperature=0, ignore_eos=True),
                digests[i % len(digests)], cache_salt=label,
            )
        )  # fmt: skip
    return requests


class Thrash:
    """One engine with room for few adapters, and the arms that run on it in turn."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self._options, most = options, max(options.in_use)
        built = build_cpu_engine(root)
        self._digests = register_random_adapters(built, root, most, options.rank)
        load_adapters(built, self._digests[:1])
        pooled = built.tiers.acquire(self._digests[0])
        assert pooled is not None
        self.adapter_bytes = pooled.num_bytes
        built.tiers.close()
        self._built = self._build(root)

    def _build(self, root: Path) -> BuiltEngine:
        options = self._options
        built = build_cpu_engine(
            root,
            max_running=options.max_running,
            max_adapters_in_batch=options.max_running,
            adapter_bytes=options.room * self.adapter_bytes,
            host_adapter_bytes=512 * MIB,
        )
        for digest in self._digests:
            load_adapters(built, [digest])
        return built

    @property
    def num_pauses(self) -> int:
        return self._built.engine.scheduler.num_pauses

    def run(self, num_in_use: int, label: str, num_requests: int) -> Outcome:
        digests = self._digests[:num_in_use]
        requests = create_requests(self._options, digests, label)[:num_requests]
        return drive_users(self._built.engine, requests, self._options.users)

    def close(self) -> None:
        self._built.tiers.close()


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    thrash = Thrash(options, root)
    for num_in_use in options.in_use:  # who was just loaded is not let go for a while
        thrash.run(num_in_use, f"warm-up-{num_in_use}", options.users)
    runs: dict[int, list[Outcome]] = {num: [] for num in options.in_use}
    pauses = dict.fromkeys(options.in_use, 0)
    for i in range(options.repeats):
        for num_in_use, done in runs.items():
            before = thrash.num_pauses
            done.append(thrash.run(num_in_use, f"{num_in_use}-{i}", options.requests))
            pauses[num_in_use] += thrash.num_pauses - before
            report.say(f"{num_in_use} in use: {done[-1].ttft_s['p50']:.3f} s to first token")
    thrash.close()
    first = options.in_use[0]
    return {
        "adapter_bytes": thrash.adapter_bytes,
        "arms": {
            str(num): {
                "ttft_ratio": _median_ratio(done, runs[first]),
                "pauses_per_request": pauses[num] / (options.repeats * options.requests),
                **_middle(done).figures(),
            }
            for num, done in runs.items()
        },
    }


def _median_ratio(runs: Sequence[Outcome], first: Sequence[Outcome]) -> float:
    pairs = zip(runs, first, strict=True)
    return statistics.median(run.ttft_s["p50"] / base.ttft_s["p50"] for run, base in pairs)


def _middle(runs: Sequence[Outcome]) -> Outcome:
    return sorted(runs, key=lambda run: run.ttft_s["p50"])[len(runs) // 2]


def print_result(result: Mapping[str, Any]) -> None:
    columns = (
        "in use", "TTFT s p50", "p90", "p99", "ratio", "s/token p50", "p99", "tokens/s",
        "running", "distinct", "pauses",
    )  # fmt: skip
    rows = [
        (
            name, *(arm["ttft_s"][p] for p in ("p50", "p90", "p99")), arm["ttft_ratio"],
            *(arm["normalised_latency_s"][p] for p in ("p50", "p99")), arm["output_tokens_per_s"],
            arm["running_per_step"]["mean"], arm["distinct_adapters_per_step"]["mean"],
            arm["pauses_per_request"],
        )
        for name, arm in result["arms"].items()
    ]  # fmt: skip
    report.print_table("More adapters in use than have room", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--room", type=int, default=8, help="adapters on the device")
    parser.add_argument("--in-use", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--users", type=int, default=12, help="requests that run or wait")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    add_workload_options(parser, seed=42)
    # of various lengths: answers that end together would have prompts wait for each other
    parser.set_defaults(input_len=[32, 96], output_len=[64, 192])
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as root:
        result = measure(options, Path(root))
    own = {key: value for key, value in vars(options).items() if key != "json_dir"}
    result["settings"] = report.settings(**own, model="qwen3 dense, hidden 512", dtype="float32")
    print_result(result)
    report.write_json(options.json_dir, NAME, result)
    worst = max(arm["ttft_ratio"] for arm in result["arms"].values())
    if worst > MAX_TTFT_RATIO:
        raise SystemExit(f"the median time to first token is {worst:.1f} times the first arm's")


if __name__ == "__main__":
    main()
