"""What an engine tells of itself: what is fixed, what it counts, and where adapters are."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is fixed for the life of an engine.

    `hf_config` is the base's `config.json` and `base_digest` identifies its weights; adapters are
    bound to that digest. `memory_bytes` maps "weights", "kv" and "adapters" to bytes.
    `quantization`: what the base's projections are rounded to; `kv_dtype`: None is `dtype`.
    `engine_id` is this engine's alone, also among those that come after it: its counts are its own.
    """

    base_name: str
    base_digest: str
    hf_config: Mapping[str, object]
    max_model_len: int
    max_adapter_rank: int
    dtype: str
    device: str
    kernels: str
    memory_bytes: Mapping[str, int]
    quantization: str | None = None
    kv_dtype: str | None = None
    max_adapters_in_batch: int = 1
    engine_id: str = field(default_factory=lambda: f"engine_{secrets.token_hex(16)}")


AdapterLevel = Literal["gpu", "cpu", "disk", "remote"]


@dataclass(frozen=True, slots=True)
class AdapterPlacement:
    """Where one adapter is on one replica.

    `state` is as in `EngineStats.adapter_states`, `level` the nearest tier that has all of it; a
    device is "gpu" also where it is a CPU. `rank` is its highest, `num_bytes` what it takes on that
    level; both are 0 where they are not known there. `failure`: why it could not be loaded.
    """

    adapter_digest: str
    state: str
    level: AdapterLevel
    num_references: int = 0
    rank: int = 0
    num_bytes: int = 0
    is_pinned: bool = False
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine, cheap enough to take on every scrape.

    `num_cached_prompt_tokens` of the prompt tokens came from the prefix cache. `num_pauses`: of
    requests whose adapter had to make room for another. `histograms` maps a
    metric to observations made since the last snapshot was taken with
    `drain=True`: "time_to_first_token", "inter_token_latency", "queue_time", "adapter_load_time"
    (all seconds).
    """

    num_running: int
    num_waiting: int
    num_blocks_total: int
    num_blocks_free: int
    num_pages_total: int
    num_pages_free: int
    num_prompt_tokens: int
    num_generation_tokens: int
    num_preemptions: int
    num_cached_prompt_tokens: int = 0
    num_pauses: int = 0
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    adapter_states: Mapping[str, str] = field(default_factory=dict)
    histograms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
