"""Answers as routes show them: whole objects and stream chunks. Values in, dictionaries out.

OpenAI's shapes are here; LoRAX's are in `weft.gateway.lorax_wire`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from weft.errors import WeftError
from weft.gateway.error_handlers import error_to_wire
from weft.gateway.logprobs import LogprobsFormat
from weft.messages import EngineOutput, TokenLogprobs, Usage

Wire = dict[str, object]


@dataclass(slots=True)
class Choice:
    """One choice's answer as it grows. `offset` is where a stream's next token begins in its text;
    only log-probabilities ask for it."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    offset: int = 0

    def add(self, output: EngineOutput) -> None:
        self.text += output.text
        self.finish_reason = output.finish_reason
        self.logprobs += output.logprobs


class AnswerFormat(Protocol):
    """How one route shows its answers. `done` ends a stream that ended well."""

    done: bytes

    def answer(self, choices: Sequence[Choice], usage: Wire) -> Wire | list[Wire]:
        """The whole answer."""

    def headers(self, usage: Wire) -> Mapping[str, str]:
        """Headers of a whole answer, besides those known when it began."""

    def opening(self, num_choices: int) -> list[Wire]:
        """Chunks before any text."""

    def chunks(self, index: int, choice: Choice, output: EngineOutput) -> list[Wire]:
        """What has come for a choice, or its end."""

    def usage_chunk(self, usage: Wire) -> Wire:
        """The chunk without choices that `include_usage` asks for."""

    def error(self, error: WeftError) -> tuple[int, Wire]:
        """The status and the body of an error."""


class _OpenAIFormat:
    """What OpenAI's routes have in common."""

    done = b"data: [DONE]\n\n"

    def headers(self, usage: Wire) -> Mapping[str, str]:
        return {}

    def error(self, error: WeftError) -> tuple[int, Wire]:
        return error.status_code, error_to_wire(error)


@dataclass(frozen=True, slots=True)
class _Envelope:
    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, kind: str, choices: list[Wire]) -> Wire:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class ChatFormat(_OpenAIFormat):
    """`/v1/chat/completions`; `logprobs` where they are asked for."""

    def __init__(self, request_id: str, model: str, logprobs: LogprobsFormat | None) -> None:
        self._envelope = _Envelope(f"chatcmpl-{request_id.removeprefix('req_')}", model)
        self._logprobs = logprobs

    def answer(self, choices: Sequence[Choice], usage: Wire) -> Wire:
        shown: list[Wire] = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None
                if self._logprobs is None
                else self._logprobs.chat(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for i, choice in enumerate(choices)
        ]
        return {**self._envelope.wrap("chat.completion", shown), "usage": usage}

    def opening(self, num_choices: int) -> list[Wire]:
        delta: Wire = {"role": "assistant", "content": ""}
        return [self._chunk(i, delta, None, None) for i in range(num_choices)]

    def chunks(self, index: int, choice: Choice, output: EngineOutput) -> list[Wire]:
        logprobs = None
        if self._logprobs is not None and output.logprobs:
            logprobs = self._logprobs.chat(output.logprobs)
        delta: Wire = {"content": output.text} if output.text else {}
        return [self._chunk(index, delta, logprobs, output.finish_reason)]

    def _chunk(
        self, index: int, delta: Wire, logprobs: Wire | None, finish_reason: str | None
    ) -> Wire:
        choice: Wire = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._envelope.wrap("chat.completion.chunk", [choice])

    def usage_chunk(self, usage: Wire) -> Wire:
        return {**self._envelope.wrap("chat.completion.chunk", []), "usage": usage}


class CompletionFormat(_OpenAIFormat):
    """`/v1/completions`; `logprobs` where they are asked for."""

    def __init__(self, request_id: str, model: str, logprobs: LogprobsFormat | None) -> None:
        self._envelope = _Envelope(f"cmpl-{request_id.removeprefix('req_')}", model)
        self._logprobs = logprobs

    def answer(self, choices: Sequence[Choice], usage: Wire) -> Wire:
        shown = [
            self._choice(i, choice.text, choice.finish_reason, choice.logprobs, 0)
            for i, choice in enumerate(choices)
        ]
        return {**self._envelope.wrap("text_completion", shown), "usage": usage}

    def opening(self, num_choices: int) -> list[Wire]:
        return []

    def chunks(self, index: int, choice: Choice, output: EngineOutput) -> list[Wire]:
        shown = self._choice(
            index, output.text, output.finish_reason, output.logprobs, choice.offset
        )
        if self._logprobs is not None:
            choice.offset += sum(map(self._logprobs.num_chars, output.logprobs))
        return [self._envelope.wrap("text_completion", [shown])]

    def _choice(
        self, index: int, text: str, finish_reason: str | None,
        logprobs: Sequence[TokenLogprobs], offset: int,
    ) -> Wire:  # fmt: skip
        shown = None if self._logprobs is None else self._logprobs.legacy(logprobs, offset)
        return {"index": index, "text": text, "logprobs": shown, "finish_reason": finish_reason}

    def usage_chunk(self, usage: Wire) -> Wire:
        return {**self._envelope.wrap("text_completion", []), "usage": usage}


def total_usage(usages: Sequence[Usage]) -> Wire:
    """The engine's counts over all prompts; a prompt counts once for all its choices."""
    prompt = sum(usage.num_prompt_tokens for usage in usages)
    completion = sum(usage.num_completion_tokens for usage in usages)
    cached = sum(usage.num_cached_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def encode(value: object) -> bytes:
    """JSON in UTF-8."""
    return msgspec.json.encode(value)


def frame(value: Wire) -> bytes:
    """A server-sent event."""
    return b"data: %b\n\n" % encode(value)
