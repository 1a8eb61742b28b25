"""What the gateway and the engine say to each other: frozen values and one Protocol.

This module imports nothing heavy and knows neither HTTP nor tensors. Tokens are int ids of the
base model's vocabulary, times are seconds, and an adapter is named by its content digest only:
names, aliases and versions end in the registry.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer's text must match.

    `text` is a JSON schema, a regular expression, or, for "json_object", empty: any JSON object.
    """

    kind: Literal["json_object", "json_schema", "regex"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen; the names and meanings are vLLM's.

    `temperature == 0` is greedy. `top_k == 0`, `top_p == 1` and `min_p == 0` keep the whole
    vocabulary. Penalties are off at repetition 1, presence 0 and frequency 0; repetition looks at
    prompt and answer, the other two at the answer alone. `logit_bias` is added by token id.
    `min_tokens` keeps end-of-text and `stop_token_ids` from being sampled until then. `logprobs`:
    how many alternatives to report beside each token (0 = the token alone, None = nothing).
    A request without a seed gets one from its request id, so that a retry of the step is the same
    token; choice `i` of `n` adds i to the seed.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    grammar: Grammar | None = None

    @property
    def has_penalty(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        _require(0 <= self.temperature <= 2, "temperature", "between 0 and 2", self.temperature)
        _require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        _require(self.top_k >= 0, "top_k", "0 or more", self.top_k)
        _require(0 <= self.min_p <= 1, "min_p", "between 0 and 1", self.min_p)
        _require(
            0 < self.repetition_penalty <= 2, "repetition_penalty", "above 0 and at most 2",
            self.repetition_penalty,
        )  # fmt: skip
        for name in ("presence_penalty", "frequency_penalty"):
            _require(-2 <= getattr(self, name) <= 2, name, "between -2 and 2", getattr(self, name))
        for token, bias in self.logit_bias:
            _require(-100 <= bias <= 100, f"logit_bias of token {token}", "-100 to 100", bias)
        _require(1 <= self.n <= MAX_CHOICES, "n", f"1 to {MAX_CHOICES}", self.n)
        _require(all(self.stop), "stop", "strings that are not empty", self.stop)
        _require(
            0 <= self.min_tokens <= self.max_tokens, "min_tokens", "between 0 and max_tokens",
            self.min_tokens,
        )  # fmt: skip
        _require(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "logprobs",
            f"0 to {MAX_LOGPROBS}", self.logprobs,
        )  # fmt: skip


MAX_CHOICES = 128
MAX_LOGPROBS = 20


def _require(is_met: bool, name: str, wanted: str, value: object) -> None:
    if not is_met:
        raise ValueError(f"{name} must be {wanted}, not {value}")


@dataclass(frozen=True, slots=True)
class TenantShare:
    """A tenant's part of the engine: while tenants compete, each gets service in proportion to its
    `weight`; at most `max_running` of its sequences run at once (None: no cap of its own)."""

    weight: float = 1.0
    max_running: int | None = None

    def __post_init__(self) -> None:
        _require(0 < self.weight < float("inf"), "weight", "above 0 and finite", self.weight)
        _require(
            self.max_running is None or self.max_running >= 1, "max_running", "at least 1",
            self.max_running,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RequestVocabulary:
    """The vocabulary of an adapter that has an embedding, a head or tokens of its own.

    num_tokens: ids are below it. eos_token_ids: what ends an answer besides the base's. texts: of
    tokens that the base's tokenizer does not have, by their ids; empty for control tokens.
    """

    num_tokens: int
    eos_token_ids: frozenset[int] = frozenset()
    texts: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One generation, or `sampling.n` of them that share a prompt. `adapter_digest` is None for
    the base model itself. `tenant_id` is empty for the platform's own requests, whose tokens are
    counted nowhere: what is counted is what is billed.

    `priority` orders the requests of one tenant among themselves, the lowest first (as vLLM's); it
    never puts one tenant before another. `queue_timeout_s` is how long it may wait to be started,
    `adapter_timeout_s` how long for an adapter that is not on the device, `timeout_s` how long it
    may take in all; None: as long as it takes. `cache_salt` keeps its prompt from being matched
    with prompts of the same tenant that have another salt.

    `vocabulary`: where the adapter has one of its own.
    """

    request_id: str
    tenant_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter_digest: str | None = None
    share: TenantShare = TenantShare()
    priority: int = 0
    queue_timeout_s: float | None = None
    adapter_timeout_s: float | None = None
    timeout_s: float | None = None
    cache_salt: str = ""
    vocabulary: RequestVocabulary | None = None

    def __post_init__(self) -> None:
        for name in ("queue_timeout_s", "adapter_timeout_s", "timeout_s"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "above 0", value)


@dataclass(frozen=True, slots=True)
class Usage:
    """The engine's own counts; the only ones that are billed.

    `num_completion_tokens` counts every token that was sampled and kept, of all choices, the
    end-of-text token included, as OpenAI and vLLM do; tokens computed past a stop are not counted.
    `num_cached_tokens` of the prompt's tokens were taken from the prefix cache.
    """

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities of one sampled token and of the best alternatives, best first.

    They are of the model's own distribution, before temperature, penalties and filters, as vLLM
    reports them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


ErrorCode = Literal[
    "adapter_loading", "adapter_unavailable", "deadline_exceeded", "engine_failed",
    "no_token_allowed", "non_finite", "queue_timeout",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What became of choice `index` of a request since its last output.

    `text`, `token_ids` and `logprobs` are deltas; concatenated over a choice they are its whole
    answer. `usage` is cumulative over the request. A choice ends with its `finish_reason`, the
    request with the output that has `is_last`; `error` and `error_code` are set exactly when the
    reason is "error".
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    usage: Usage
    finish_reason: FinishReason | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    index: int = 0
    is_last: bool = False
    logprobs: tuple[TokenLogprobs, ...] = ()


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


class EngineQueueFullError(Exception):
    """The bounded waiting queue is full; nothing was admitted."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(f"The engine's queue is full ({num_waiting} requests are waiting).")
        self.num_waiting = num_waiting


class EngineDrainingError(Exception):
    """The engine is shutting down and admits nothing more."""


class EngineDeadError(Exception):
    """The engine has ended by a fault, or cannot be reached; `str(error)` says why."""


class EngineClient(Protocol):
    """How the gateway sees an engine, wherever it runs."""

    @property
    def info(self) -> EngineInfo:
        """The engine's fixed facts."""

    @property
    def is_ready(self) -> bool:
        """True after warm-up, while the engine thread lives, makes progress and is not draining.

        Of an engine in another process this is what was heard of it last, at most seconds ago."""

    @property
    def not_ready_reason(self) -> str:
        """Why `is_ready` is False, as a sentence; empty when it is True."""

    async def prepare_grammar(self, grammar: Grammar) -> None:
        """Have `grammar` compiled before `generate` needs it: that may take seconds, which neither
        the caller's event loop nor the engine has. ValueError for one that cannot be used."""

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Admit `req` at once, and give its outputs.

        Raises before there is an iterator: `EngineQueueFullError`, `EngineDrainingError`,
        `EngineDeadError`, or `ValueError` for a request that can never run (its prompt with
        max_tokens does not fit, a token id outside the vocabulary). Leaving the iterator early
        does not abort: call `abort`. A caller that is cancelled here has admitted nothing.
        """

    def abort(self, request_id: str) -> None:
        """End a request within one step; its last output has reason "abort". Idempotent."""

    async def stats(self, *, drain: bool = False) -> EngineStats:
        """The engine's counters now; `drain` empties the histogram buffers."""

    async def placements(self, adapter_digest: str | None = None) -> Sequence[AdapterPlacement]:
        """Of all adapters that are on a tier of the engine, or on their way; or of one, wherever it
        is."""

    async def unload_adapter(self, adapter_digest: str) -> None:
        """Have the adapter leave the device and host memory when the requests that use it have
        ended; one that comes for it before keeps it on the device."""

    def prefetch_adapter(self, adapter_digest: str) -> None:
        """Hint that a request for this adapter is near: start bringing it to the device."""

    async def discard_adapter(self, adapter_digest: str) -> None:
        """Its files were removed from the store: have it leave every tier of the engine, as
        `unload_adapter` does."""

    async def pin_adapters(self, adapter_digests: Collection[str]) -> None:
        """These versions, and no others, stay on the tiers that they reach."""

    async def drain(self, deadline_s: float) -> None:
        """Admit nothing more from this client, let what runs for it finish for `deadline_s`, abort
        the rest."""
