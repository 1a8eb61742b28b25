"""What an engine counts and times, for whoever scrapes it. Plain Python, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

# those that no scrape has taken; more are dropped
MAX_OBSERVATIONS = 100_000


@dataclass(slots=True)
class EngineCounters:
    """Totals since start, and observations (seconds) since they were last taken."""

    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    num_steps: int = 0
    time_to_first_token: list[float] = field(default_factory=list)
    inter_token_latency: list[float] = field(default_factory=list)
    queue_time: list[float] = field(default_factory=list)


def observe(values: list[float], value: float) -> None:
    if len(values) < MAX_OBSERVATIONS:
        values.append(value)


def take_observations(counters: EngineCounters, drain: bool) -> dict[str, tuple[float, ...]]:
    taken = {}
    for name in ("time_to_first_token", "inter_token_latency", "queue_time"):
        values: list[float] = getattr(counters, name)
        size = len(values)
        taken[name] = tuple(values[:size])
        if drain:
            del values[:size]  # what the engine's thread appends meanwhile stays
    return taken
