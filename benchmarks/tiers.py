"""Which adapters the tiers keep: hit ratios of the eviction policies over one trace after another.

2,000 adapters are registered, ranks 8 to 64 on the attention or on all linear layers of
Llama-3-8B. The device has room for 32 of mean size, host memory for 500, the disk for 1,000. The
policies are those that the tiers run, over what each adapter really takes of a tier; the tiers
themselves are simulated (see `tier_simulation`), so the figures are exact and repeat.

    device    requests that find their adapter on the device
    host      those and the ones that find it in host memory
    disk      those and the ones that find it on the disk; the rest waits for the store
    wait      mean seconds that a request waits for its adapter, at the bandwidths given

`offline` is Belady's choice by size, which knows the future: the optimum where all have one size
(`--sizes equal`), near it where they differ. It looks at hits, so that `cost`, which looks at the
time of loads, may wait less.

    python -m benchmarks.tiers [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks import report
from benchmarks.tier_simulation import Hierarchy, Level, run_offline
from benchmarks.tier_traces import TRACES, Trace, create_trace
from numpy.typing import NDArray

from weft_adapters.policy import POLICIES, create_policy
from weft_adapters.pool import PagePool
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import ATTENTION_PROJECTIONS, MLP_PROJECTIONS, BaseSpec

NAME = "tiers"
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336,
}  # fmt: skip
SITES = (ATTENTION_PROJECTIONS, ATTENTION_PROJECTIONS + MLP_PROJECTIONS)
RANKS, RANK_SHARES = (8, 16, 32, 64), (0.3, 0.4, 0.2, 0.1)
SIZES = ("mixed", "equal")
# into each tier from the one below it: seconds before the first byte, bytes a second
LINKS = {"device": (50e-6, 20e9), "host": (1e-3, 3e9), "disk": (20e-3, 1e9)}
# the policies are counted once the tiers are full
WARM_UP = 0.2


def adapter_bytes(rank: int, projections: Sequence[str]) -> tuple[int, int]:
    """Bytes on the device (pages, bfloat16) and in host memory (factors, float32)."""
    base = BaseSpec.from_config(LLAMA_3_8B, "sha256:" + "0" * 64)
    weights = {}
    for site in base.sites():
        if site.projection in projections:
            num_in, num_out = base.shape(site)
            # one number that stands for all: the sizes are all that is asked for
            a, b = (np.broadcast_to(np.float32(0), (rank, width)) for width in (num_in, num_out))
            weights[site] = SiteWeights(a, b, 1.0)
    pool = PagePool(base, 2**30, torch.bfloat16, "meta")
    return pool.num_bytes_needed(weights), sum(w.a.nbytes + w.b.nbytes for w in weights.values())


def create_sizes(kind: str, num_adapters: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """`[num_adapters]` int64 each: bytes on the device, and in host memory and files."""
    if kind == "equal":
        device_bytes, host_bytes = adapter_bytes(16, SITES[1])
        return np.full(num_adapters, device_bytes), np.full(num_adapters, host_bytes)
    table = np.array([[adapter_bytes(rank, names) for names in SITES] for rank in RANKS])
    random = np.random.RandomState(seed)
    ranks = random.choice(len(RANKS), num_adapters, p=RANK_SHARES)
    chosen = table[ranks, random.randint(len(SITES), size=num_adapters)]
    return chosen[:, 0], chosen[:, 1]


def create_level(name: str, count: int, num_bytes: NDArray[Any]) -> Level:
    """A tier with room for `count` adapters of mean size."""
    latency_s, bytes_per_s = LINKS[name]
    load_s = latency_s + num_bytes / bytes_per_s
    budget_bytes = int(count * num_bytes.mean())
    return Level(name, budget_bytes, num_bytes.tolist(), load_s.tolist())


class Setting:
    """The tiers for adapters of one kind of sizes."""

    def __init__(self, options: argparse.Namespace, sizes: str) -> None:
        device_bytes, host_bytes = create_sizes(sizes, options.adapters, options.seed)
        self.levels = [
            create_level("device", options.device, device_bytes),
            create_level("host", options.host, host_bytes),
            create_level("disk", options.disk, host_bytes),
        ]

    def figures(self, found: NDArray[np.int64], adapters: NDArray[np.int64]) -> dict[str, float]:
        counted = slice(int(WARM_UP * len(found)), None)
        found, adapters = found[counted], adapters[counted]
        shares = {
            level.name: 100.0 * float((found <= index).mean())
            for index, level in enumerate(self.levels)
        }
        links = np.array([level.load_s for level in self.levels])
        waits_s = np.concatenate([np.zeros((1, links.shape[1])), np.cumsum(links, axis=0)])
        return {**shares, "wait_s": float(waits_s[found, adapters].mean())}


def run_online(trace: Trace, levels: Sequence[Level], policy: str) -> NDArray[np.int64]:
    """Each tier with a policy of its own."""
    return Hierarchy(levels, [create_policy(policy) for _ in levels]).run(trace)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    points = []
    for sizes in options.sizes:
        setting = Setting(options, sizes)
        for name in options.traces:
            trace = create_trace(name, options.adapters, options.requests, options.seed)
            runs = {"offline": run_offline(trace, setting.levels)}
            for policy in POLICIES:
                runs[policy] = run_online(trace, setting.levels, policy)
            figures = {
                policy: setting.figures(found, trace.adapters) for policy, found in runs.items()
            }
            points.append({
                "sizes": sizes, "trace": name, "trace_sha256": trace.digest,
                "budget_gib": {lv.name: lv.budget_bytes / 2**30 for lv in setting.levels},
                **figures,
            })  # fmt: skip
            report.say(f"{sizes} sizes, {name}: {margin(points[-1]):+.2f} points on LRU")
    return points


def margin(point: Mapping[str, Any]) -> float:
    """Points by which `cost` is ahead of LRU, on the tier where it is least so."""
    cost, lru = point["cost"], point["lru"]
    return float(min(cost[tier] - lru[tier] for tier in ("device", "host", "disk")))


def print_result(points: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (point["sizes"], point["trace"], policy, *point[policy].values())
        for point in points
        for policy in ("offline", *POLICIES)
    ]
    columns = ("sizes", "trace", "policy", "device %", "host %", "disk %", "wait s")
    report.print_table("Hits, tier by tier", columns, rows)
    margins = {f"{point['sizes']} sizes, {point['trace']}": margin(point) for point in points}
    report.print_figures("cost over LRU, points on the tier where it is least", margins)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=2000, help="registered")
    parser.add_argument("--device", type=int, default=32, help="adapters of mean size, as below")
    parser.add_argument("--host", type=int, default=500)
    parser.add_argument("--disk", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--traces", nargs="+", default=list(TRACES), choices=TRACES)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json-dir", type=Path, help="write the result there")
    return parser


def main() -> None:
    options = create_parser().parse_args()
    points = measure(options)
    own = {key: value for key, value in vars(options).items() if key != "json_dir"}
    print_result(points)
    result = {"settings": report.settings(**own, base="Llama-3-8B", links=LINKS), "points": points}
    report.write_json(options.json_dir, NAME, result)


if __name__ == "__main__":
    main()
