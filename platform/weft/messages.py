"""What the gateway and the engine say to each other: frozen values and one Protocol.

This module imports nothing heavy and knows neither HTTP nor tensors. Tokens are int ids of the
base model's vocabulary, times are seconds, and an adapter is named by its content digest only:
names, aliases and versions end in the registry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen.

    `temperature == 0` is greedy. `top_k == 0` and `top_p == 1` keep the whole vocabulary. A request
    without a seed gets one from its request id, so that a retry of the step is the same token.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature must be between 0 and 2, not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, not {self.top_k}")
        if any(not stop for stop in self.stop):
            raise ValueError("stop strings must not be empty")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation. `adapter_digest` is None for the base model itself."""

    request_id: str
    tenant_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The engine's own counts; the only ones that are billed.

    `num_completion_tokens` counts every token that was sampled and kept, the end-of-text token
    included, as OpenAI and vLLM do; tokens computed past a stop are not counted.
    """

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What became of a request since its last output.

    `text` and `token_ids` are deltas; concatenated over a request they are its whole answer.
    `usage` is cumulative. The output with a `finish_reason` is the last one; `error` is set exactly
    when that reason is "error".
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is fixed for the life of an engine.

    `hf_config` is the base's `config.json` and `base_digest` identifies its weights; adapters are
    bound to that digest. `memory` maps "weights", "kv" and "adapters" to bytes.
    """

    base_name: str
    base_digest: str
    hf_config: Mapping[str, object]
    max_model_len: int
    max_adapter_rank: int
    dtype: str
    device: str
    memory_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine, cheap enough to take on every scrape.

    `histograms` maps a metric to observations made since the last snapshot was taken with
    `drain=True`: "time_to_first_token", "inter_token_latency", "queue_time" (all seconds).
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
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    adapter_states: Mapping[str, str] = field(default_factory=dict)
    histograms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class EngineQueueFullError(Exception):
    """The bounded waiting queue is full; nothing was admitted."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(f"The engine's queue is full ({num_waiting} requests are waiting).")
        self.num_waiting = num_waiting


class EngineDrainingError(Exception):
    """The engine is shutting down and admits nothing more."""


class EngineDeadError(Exception):
    """The engine thread has ended by a fault; `str(error)` says which."""


class EngineClient(Protocol):
    """How the gateway sees an engine, wherever it runs."""

    @property
    def info(self) -> EngineInfo:
        """The engine's fixed facts."""

    @property
    def is_ready(self) -> bool:
        """True after warm-up, while the engine thread lives, makes progress and is not draining."""

    @property
    def not_ready_reason(self) -> str:
        """Why `is_ready` is False, as a sentence; empty when it is True."""

    def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Admit `req` at once and stream its outputs.

        Raises at the call, before any iteration: `EngineQueueFullError`, `EngineDrainingError`,
        `EngineDeadError`, or `ValueError` for a request that can never run (its prompt with
        max_tokens does not fit, a token id outside the vocabulary). Leaving the iterator early
        does not abort: call `abort`.
        """

    def abort(self, request_id: str) -> None:
        """End a request within one step; its last output has reason "abort". Idempotent."""

    def snapshot(self, *, drain: bool = False) -> EngineStats:
        """The engine's counters now; `drain` empties the histogram buffers."""

    def prefetch_adapter(self, adapter_digest: str) -> None:
        """Hint that a request for this adapter is near: start bringing it to the device."""

    async def drain(self, deadline_s: float) -> None:
        """Admit nothing more, let what runs finish for `deadline_s`, abort the rest."""
