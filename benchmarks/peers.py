"""Weft beside transformers + PEFT and, where it is installed, vLLM: the same base, adapters,
prompts and number of threads, without LoRA, with 4 and with 16 adapters in one batch.

Every side decodes greedily and without an end of text; sides take turns, the best of `--repeats`
runs of each counts. vLLM runs in an environment of its own (benchmarks/README.md says how to make
it): its offline LLM API, float32, compiled, the allocator and the OpenMP that it recommends.

    python -m benchmarks.peers [--vllm-python PATH --vllm-preload LIB:LIB] [--json-dir ...]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.models import RANKS, VOCAB_SIZE, create_adapters, create_dense_base, quiet_libraries
from benchmarks.peer_sides import PeftSide, Side, Tokens, VllmSide, WeftSide
from benchmarks.peft_mixed_batch import create_engine

NAME = "peers"
NUM_ADAPTERS = 16
BATCHES = {"without LoRA": 0, "4 adapters": 4, "16 adapters": NUM_ADAPTERS}
# OpenMP threads spin for a while after their last work; the next side shall not feel it
PAUSE_S = 1.0
# by itself vLLM keeps one core for its other processes, which leaves it one thread of two and half
# of its speed; in one process, and with no core kept, it was fastest
VLLM_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "auto",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}

# best wall seconds and the tokens of the last run, by side and batch
Best = dict[tuple[str, str], tuple[float, Tokens]]


def create_prompts(count: int, input_len: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(input_len)] for _ in range(count)]


def create_sides(options: argparse.Namespace, root: Path) -> list[Side]:
    base_dir = root / "base"
    create_dense_base(base_dir)
    folders = create_adapters(base_dir, root, NUM_ADAPTERS)
    built, load = create_engine(base_dir, root / "store", folders, options.requests)
    sides: list[Side] = [WeftSide(built, load.digests)]
    if not options.skip_peft:
        sides.append(PeftSide(base_dir, folders))
    if options.vllm_python is not None:
        env = {**VLLM_ENV, **dict(item.split("=", 1) for item in options.vllm_env)}
        if options.vllm_preload:
            env["LD_PRELOAD"] = options.vllm_preload
        report.say("vLLM starts and compiles")
        sides.append(VllmSide(base_dir, folders, options.vllm_python, root, env))
    return sides


def measure(options: argparse.Namespace, sides: Sequence[Side]) -> Best:
    prompts = create_prompts(options.requests, options.input_len)
    for side in sides:
        for num_adapters in BATCHES.values():
            side.run(prompts, num_adapters, min(4, options.output_len))
    best: Best = {}
    for i in range(options.repeats):
        for batch, num_adapters in BATCHES.items():
            for side in sides:
                time.sleep(PAUSE_S)
                wall_s, tokens = side.run(prompts, num_adapters, options.output_len)
                before = best.get((side.name, batch), (wall_s, tokens))
                best[side.name, batch] = (min(wall_s, before[0]), tokens)
        report.say(f"round {i + 1} of {options.repeats} done")
    return best


def figures(options: argparse.Namespace, best: Best, names: Sequence[str]) -> dict[str, Any]:
    """Speeds, what LoRA costs each side, Weft's speed over each peer's, and equal tokens."""
    num_tokens = options.requests * options.output_len
    speeds = {
        name: {batch: num_tokens / best[name, batch][0] for batch in BATCHES} for name in names
    }
    plain, *with_lora = BATCHES
    return {
        "output_tokens_per_s": speeds,
        "lora_retention": {
            name: {batch: speeds[name][batch] / speeds[name][plain] for batch in with_lora}
            for name in names
        },
        "lora_ms_per_step": {
            name: {batch: _added_ms(options, best, name, batch, plain) for batch in with_lora}
            for name in names
        },
        "weft_over_peer": {
            name: {batch: speeds["weft"][batch] / speeds[name][batch] for batch in BATCHES}
            for name in names
            if name != "weft"
        },
        "requests_with_wefts_tokens": {
            name: {batch: _num_equal(best, name, batch) for batch in BATCHES}
            for name in names
            if name != "weft"
        },
    }


def _added_ms(options: argparse.Namespace, best: Best, name: str, batch: str, plain: str) -> float:
    """What LoRA adds, spread over the steps, of which there is one for each output token."""
    return 1000 * (best[name, batch][0] - best[name, plain][0]) / float(options.output_len)


def _num_equal(best: Best, name: str, batch: str) -> int:
    """Requests with the same tokens to the end (near-ties may part two of them)."""
    pairs = zip(best["weft", batch][1], best[name, batch][1], strict=True)
    return sum(ours == theirs for ours, theirs in pairs)


def print_result(result: Mapping[str, Any]) -> None:
    for key in (
        "output_tokens_per_s", "weft_over_peer", "lora_retention", "lora_ms_per_step",
        "requests_with_wefts_tokens",
    ):  # fmt: skip
        rows = [
            [name, *(values.get(batch, "") for batch in BATCHES)]
            for name, values in result[key].items()
        ]
        if rows:
            report.print_table(key.replace("_", " "), ("side", *BATCHES), rows)
    report.print_figures("Settings", result["settings"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", help="the Python of an environment with vLLM")
    parser.add_argument("--vllm-preload", help="LD_PRELOAD for vLLM: its allocator and OpenMP")
    parser.add_argument("--vllm-env", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--skip-peft", action="store_true")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json-dir", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as root:
        sides = create_sides(options, Path(root))
        try:
            best = measure(options, sides)
            described = {side.name: side.describe() for side in sides}
        finally:
            for side in sides:
                side.close()
    result = figures(options, best, [side.name for side in sides])
    load = f"{options.requests} requests, {options.input_len} in, {options.output_len} out"
    result["settings"] = report.settings(
        model="qwen3 dense, hidden 512, 8 layers, random weights, float32",
        load=f"{load}, adapters of ranks {'/'.join(map(str, RANKS))} on all linear layers",
        repeats=options.repeats,
        sides=described,
    )
    print_result(result)
    report.write_json(options.json_dir, NAME, result)


if __name__ == "__main__":
    main()
