"""Answers in OpenAI's shapes: whole objects and stream chunks. Values in, dictionaries out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from weft.messages import EngineOutput, Usage

Wire = dict[str, object]


@dataclass(slots=True)
class Choice:
    """One prompt's answer as it grows."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    error: str | None = None

    def add(self, output: EngineOutput) -> None:
        self.text += output.text
        self.usage = output.usage
        self.finish_reason = output.finish_reason
        self.error = output.error


class AnswerFormat(Protocol):
    """How one route shows its answers."""

    def answer(self, choices: Sequence[Choice]) -> Wire:
        """The whole object."""

    def opening(self, num_choices: int) -> list[Wire]:
        """Chunks before any text."""

    def chunk(self, index: int, text: str, finish_reason: str | None) -> Wire:
        """Text that has come, or the end of a choice."""

    def usage_chunk(self, usage: Wire) -> Wire:
        """The chunk without choices that `include_usage` asks for."""


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


class ChatFormat:
    """`/v1/chat/completions`."""

    def __init__(self, request_id: str, model: str) -> None:
        self._envelope = _Envelope(f"chatcmpl-{request_id.removeprefix('req_')}", model)

    def answer(self, choices: Sequence[Choice]) -> Wire:
        shown: list[Wire] = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for i, choice in enumerate(choices)
        ]
        return {**self._envelope.wrap("chat.completion", shown), "usage": total_usage(choices)}

    def opening(self, num_choices: int) -> list[Wire]:
        delta: Wire = {"role": "assistant", "content": ""}
        return [self._chunk(i, delta, None) for i in range(num_choices)]

    def chunk(self, index: int, text: str, finish_reason: str | None) -> Wire:
        return self._chunk(index, {"content": text} if text else {}, finish_reason)

    def _chunk(self, index: int, delta: Wire, finish_reason: str | None) -> Wire:
        choice: Wire = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return self._envelope.wrap("chat.completion.chunk", [choice])

    def usage_chunk(self, usage: Wire) -> Wire:
        return {**self._envelope.wrap("chat.completion.chunk", []), "usage": usage}


class CompletionFormat:
    """`/v1/completions`."""

    def __init__(self, request_id: str, model: str) -> None:
        self._envelope = _Envelope(f"cmpl-{request_id.removeprefix('req_')}", model)

    def answer(self, choices: Sequence[Choice]) -> Wire:
        shown = [_text_choice(i, c.text, c.finish_reason) for i, c in enumerate(choices)]
        return {**self._envelope.wrap("text_completion", shown), "usage": total_usage(choices)}

    def opening(self, num_choices: int) -> list[Wire]:
        return []

    def chunk(self, index: int, text: str, finish_reason: str | None) -> Wire:
        return self._envelope.wrap("text_completion", [_text_choice(index, text, finish_reason)])

    def usage_chunk(self, usage: Wire) -> Wire:
        return {**self._envelope.wrap("text_completion", []), "usage": usage}


def _text_choice(index: int, text: str, finish_reason: str | None) -> Wire:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def total_usage(choices: Sequence[Choice]) -> Wire:
    """The engine's counts over all choices."""
    prompt = sum(choice.usage.num_prompt_tokens for choice in choices)
    completion = sum(choice.usage.num_completion_tokens for choice in choices)
    cached = sum(choice.usage.num_cached_tokens for choice in choices)
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


def frame(value: Wire) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
