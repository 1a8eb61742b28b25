"""What the engine answers to a request: deltas of text and tokens, and its counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


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
