"""What a caller asks of the engine: prompts as tokens, and how their answers are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
