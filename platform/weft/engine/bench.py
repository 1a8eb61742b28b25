"""Measures an engine on a fixed load: all requests at once, random prompts, no end-of-text.

The same load runs with adapters and without in one process, the better of `num_repeats` runs each,
so that the ratio of the two stands on the same machine in the same minute.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from weft.engine.build import BuiltEngine, warm_up
from weft.engine.model.decoder import Decoder
from weft.engine.model.weights import DenseWeights
from weft.engine.offline import Completion, load_adapters, run_requests
from weft.messages import EngineRequest, SamplingParams
from weft_kernels.moe import expert_mm


@dataclass(frozen=True, slots=True)
class Load:
    """What is run; lengths in tokens. `digests` are dealt out in turn, none = the base alone."""

    num_requests: int
    input_len: int
    output_len: int
    digests: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a load."""

    wall_s: float
    completions: Mapping[str, Completion]
    started_s: float

    @property
    def output_tokens_per_s(self) -> float:
        return sum(len(c.token_ids) for c in self.completions.values()) / self.wall_s

    @property
    def ttft_s(self) -> list[float]:
        return [c.token_times_s[0] - self.started_s for c in self.completions.values()]

    @property
    def itl_s(self) -> list[float]:
        return [
            after - before
            for c in self.completions.values()
            for before, after in zip(c.token_times_s, c.token_times_s[1:], strict=False)
        ]


def create_requests(load: Load, vocab_size: int, label: str) -> list[EngineRequest]:
    """Greedy requests over random tokens; the same for the same load. No two labels share a
    prefix, so that a run finds nothing that the one before it left in the cache."""
    rng = random.Random(load.seed)
    sampling = SamplingParams(load.output_len, temperature=0, ignore_eos=True)
    return [
        EngineRequest(
            f"{label}-{i}",
            "bench",
            tuple(rng.randrange(vocab_size) for _ in range(load.input_len)),
            sampling,
            load.digests[i % len(load.digests)] if load.digests else None,
            cache_salt=label,
        )
        for i in range(load.num_requests)
    ]


def run_load(built: BuiltEngine, load: Load, vocab_size: int, label: str) -> Run:
    requests = create_requests(load, vocab_size, label)
    started = time.monotonic()
    completions = run_requests(built, requests)
    failed = next((c.error for c in completions.values() if c.error), None)
    if failed is not None:
        raise RuntimeError(failed)
    return Run(time.monotonic() - started, completions, started)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and mean, in the values' unit."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("there is nothing to take percentiles of")

    def at(q: float) -> float:
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    mean = sum(ordered) / len(ordered)
    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "mean": mean}


def gemm_step_s(decoder: Decoder, num_rows: int, num_repeats: int = 5) -> float:
    """Seconds that the base's GEMMs alone take for a step of `num_rows` decode rows (best run)."""
    weights, config = decoder.weights, decoder.config
    like = weights.embed_VH

    def rows(width: int) -> torch.Tensor:
        return torch.randn(num_rows, width, dtype=like.dtype, device=like.device)

    x, q, inner = rows(config.hidden_size), rows(config.q_size), rows(config.intermediate_size)
    num_pairs = num_rows * max(1, config.num_experts_per_tok)
    pairs = rows(config.hidden_size).repeat_interleave(num_pairs // num_rows, dim=0)
    experts = max(1, config.num_experts)
    ends = torch.tensor([(e + 1) * num_pairs // experts for e in range(experts)])
    ends = ends.to(like.device, torch.int32)
    pair_inner = torch.randn(
        num_pairs, max(1, config.moe_intermediate_size), dtype=like.dtype, device=like.device
    )

    def step() -> None:
        for layer in weights.layers:
            layer.qkv.apply(x)
            layer.o.apply(q)
            if isinstance(layer.mlp, DenseWeights):
                layer.mlp.gate_up.apply(x)
                layer.mlp.down.apply(inner)
            else:
                x @ layer.mlp.router_HE
                expert_mm(pairs, layer.mlp.gate_up_EHF, ends)
                expert_mm(pair_inner, layer.mlp.down_EFH, ends)
        weights.head.apply(x)
        if like.device.type == "cuda":
            torch.cuda.synchronize(like.device)

    with torch.inference_mode():
        return min(_timed(step) for _ in range(num_repeats + 1))


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(
    built: BuiltEngine,
    load: Load,
    num_repeats: int = 3,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, object]:
    """The figures of `weft bench`; speeds are of the best of `num_repeats` runs after a warm-up.

    `lora_retention`: tokens/s with adapters over tokens/s without; `gemm_roofline`: the base's
    GEMMs alone over the median decode step, with adapters.
    """
    vocab_size = built.decoder.config.vocab_size
    load_adapters(built, load.digests)
    warm_up(built.engine)
    base_load = Load(load.num_requests, load.input_len, load.output_len, (), load.seed)
    warm = Load(load.num_requests, load.input_len, 2, load.digests, load.seed)
    run_load(built, warm, vocab_size, "warm-up")
    base_runs, lora_runs = [], []
    for i in range(num_repeats):
        on_progress("bench", 2 * i, 2 * num_repeats)
        base_runs.append(run_load(built, base_load, vocab_size, f"base-{i}"))
        on_progress("bench", 2 * i + 1, 2 * num_repeats)
        lora_runs.append(run_load(built, load, vocab_size, f"lora-{i}"))
    base = max(base_runs, key=lambda run: run.output_tokens_per_s)
    best = max(lora_runs, key=lambda run: run.output_tokens_per_s)
    step_s = percentiles(best.itl_s)["p50"]
    return {
        "output_tokens_per_s": best.output_tokens_per_s,
        "requests_per_s": load.num_requests / best.wall_s,
        "ttft_s": percentiles(best.ttft_s),
        "itl_s": percentiles(best.itl_s),
        "base_output_tokens_per_s": base.output_tokens_per_s,
        "lora_retention": best.output_tokens_per_s / base.output_tokens_per_s,
        "gemm_roofline": gemm_step_s(built.decoder, load.num_requests) / step_s,
    }
