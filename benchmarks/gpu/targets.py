"""What the kernels are held to, and the rows that each target is judged by.

A target has a verdict only where all its rows were measured, with the peers that it names: a row
that is missing, failed or interpreted is a target that was not measured, and the verdict says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu import judges
from benchmarks.gpu.harness import Failure, Row
from benchmarks.gpu.judges import Judge, NotMeasured
from benchmarks.gpu.model_shapes import LLAMA_3_8B, QWEN3_30B_A3B, Model

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
_MODELS = (QWEN3_30B_A3B, LLAMA_3_8B)
_LLAMA_SITES = tuple(f"{LLAMA_3_8B.name} {site}" for site in ("qkv", "o", "gate_up", "down"))


@dataclass(frozen=True, slots=True)
class Need:
    """A row: of a bench, an operator, and with these of its shape."""

    bench: str
    operator: str
    shape: Mapping[str, int | str]

    def is_met_by(self, bench: str, operator: str, shape: Mapping[str, int | str]) -> bool:
        return (bench, operator) == (self.bench, self.operator) and self.shape.items() <= (
            shape.items()
        )

    def __str__(self) -> str:
        return " ".join([self.operator, *(f"{k}={v}" for k, v in self.shape.items())])


@dataclass(frozen=True, slots=True)
class Target:
    """limit: what is asked, in words. is_first: its rows are measured before all others."""

    name: str
    limit: str
    needs: tuple[Need, ...]
    judge: Judge
    is_first: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """outcome: met, missed or not measured; reason: why it was not."""

    target: str
    limit: str
    measured: str
    outcome: str
    reason: str = ""


# ---- rows ----


def _step(
    model: Model, requests: int, adapters: int, rank: str = "16", operator: str = "step"
) -> Need:
    shape: dict[str, int | str] = {
        "model": model.name, "requests": requests, "context": 1024, "adapters": adapters,
        "rank": rank if adapters else "0", "sites": model.sites,
    }  # fmt: skip
    return Need("bench_engine", operator, shape)


def _served(model: Model, adapters: int) -> Need:
    return _step(model, 64, adapters, operator="served_step")


def _lora(tokens: int, adapters: int, rank: str = "16") -> tuple[Need, ...]:
    """All sites of a layer of Llama-3-8B."""
    shape: dict[str, int | str] = {"tokens": tokens, "adapters": adapters, "rank": rank}
    return tuple(Need("bench_lora", "lora", {"site": site, **shape}) for site in _LLAMA_SITES)


# ---- the targets ----

_FEW = ((64, 8), (8, 8), (1, 1))
_ATTENTION = tuple(
    Need(
        "bench_attention", "attention_decode",
        {"model": model.name, "kv": "bf16", "batch": 64, "context": 1024},
    )
    for model in _MODELS
)  # fmt: skip
_EXPERTS = Need("bench_moe_lora", "moe_lora", {"tokens": 64, "adapters": 32, "rank": 8})
# requests and adapters at which the kernels are held against others' one by one
_POINTS = tuple(
    (tokens, adapters)
    for tokens in (1, 8, 16, 32, 64, 128, 256)
    for adapters in (1, 4, 8, 16, 32, 64)
    if adapters <= tokens
)

TARGETS = (
    Target(
        "T1 step", "Qwen3-30B-A3B, 64 adapters of attention: <= 1.05x without",
        (_step(QWEN3_30B_A3B, 64, 64),), judges.slowdown(1.05),
    ),
    Target(
        "T1 served", "the same by the host's clock",
        (_served(QWEN3_30B_A3B, 64),), judges.slowdown(1.05),
    ),
    Target(
        "T2 roofline", "Llama-3-8B, 64 adapters: added time <= 1.35x that of their bytes",
        (_step(LLAMA_3_8B, 64, 64), _step(LLAMA_3_8B, 64, 0)), judges.added_over_least(1.35),
    ),
    Target(
        "T2 vLLM", "a layer of it: >= 1.5x faster than vLLM's default",
        _lora(64, 64), judges.faster_than_default,
    ),
    Target(
        "T2 tuned", "a layer of it: mean >= 1.0x, each site >= 0.95x of each tuned peer",
        _lora(64, 64), judges.against_tuned,
    ),
    Target(
        "T2 grid", "the same over all batches of rank 16",
        tuple(need for point in _POINTS for need in _lora(*point)), judges.against_tuned,
        is_first=False,
    ),
    Target(
        "T3 many", "64 adapters over a step: >= 80 % of a copy's bandwidth",
        tuple(_step(model, 64, n) for model in _MODELS for n in (64, 0)), judges.added_bandwidth,
    ),
    Target(
        "T3 few", "up to 8 adapters: <= 2.5 us added a site",
        tuple(_step(model, *load) for model in _MODELS for load in _FEW), judges.added_per_site,
    ),
    Target(
        "T4 step", "Llama-3-8B, 64 of ranks 8, 16, 64: added time <= 1.1x that of their bytes",
        (_step(LLAMA_3_8B, 64, 64, "mixed"), _step(LLAMA_3_8B, 64, 0)),
        judges.added_over_least(1.10),
    ),
    Target(
        "T4 sites", "a layer of it by itself: <= 1.1x the time of its bytes",
        _lora(64, 64, "mixed"), judges.time_of_bytes,
    ),
    Target(
        "T5", "a layer of experts, 32 adapters of rank 8: >= 90 % of the speed without",
        (_EXPERTS,), judges.retention,
    ),
    Target(
        "T6 attention", "64 requests of 1,024 tokens: >= 85 % of a copy's bandwidth",
        _ATTENTION, judges.bandwidth,
    ),
    Target(
        "T6 step", "64 requests without adapters: <= 1.25x the time of weights and KV",
        tuple(_step(model, 64, 0) for model in _MODELS), judges.over_floor,
    ),
    Target(
        "T6 served", "the same by the host's clock",
        tuple(_served(model, 0) for model in _MODELS), judges.over_floor,
    ),
)  # fmt: skip


def is_needed(bench: str, operator: str, shape: Mapping[str, int | str]) -> bool:
    """Whether a target whose rows come first needs a row."""
    return any(
        need.is_met_by(bench, operator, shape)
        for target in TARGETS
        if target.is_first
        for need in target.needs
    )


def judge(rows: Sequence[Row], failures: Sequence[Failure] = ()) -> Iterator[Verdict]:
    """A verdict for each target. failures: of cases that have no row."""
    for target in TARGETS:
        try:
            measured, is_met = target.judge(_find(target, rows, failures))
        except NotMeasured as reason:
            yield Verdict(target.name, target.limit, "-", NOT_MEASURED, str(reason))
        else:
            outcome = MET if is_met else MISSED
            yield Verdict(target.name, target.limit, measured, outcome)


def _find(target: Target, rows: Sequence[Row], failures: Sequence[Failure]) -> list[Row]:
    """The target's rows, in its order."""
    by_need = {
        i: row
        for row in rows
        if row.microseconds is not None
        for i, need in enumerate(target.needs)
        if need.is_met_by(row.bench, row.operator, row.shape)
    }
    missing = [need for i, need in enumerate(target.needs) if i not in by_need]
    if not missing:
        return [by_need[i] for i in range(len(target.needs))]
    reasons = [
        f"{need}: failed, {failure.reason}"
        for need in missing
        for failure in failures
        if need.is_met_by(failure.bench, failure.operator, failure.shape)
    ]
    why = reasons[0] if reasons else f"{missing[0]}: not run"
    raise NotMeasured(f"{len(missing)} of {len(target.needs)} rows are missing ({why})")
