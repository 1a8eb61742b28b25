"""What the inference routes answer, as OpenAPI says it: they build their answers by hand."""

from __future__ import annotations

from typing import Any

Responses = dict[int | str, dict[str, Any]]

_COUNT = {"type": "integer", "minimum": 0}
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": {"type": "object", "additionalProperties": _COUNT},
        "completion_tokens_details": {"type": "object", "additionalProperties": _COUNT},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}},
}


def _completion(name: str, what: str, said: dict[str, Any]) -> dict[str, Any]:
    choice = {
        "type": "object",
        "required": ["index", what, "finish_reason"],
        "properties": {
            "index": _COUNT,
            what: said,
            "finish_reason": {"type": ["string", "null"]},
            "logprobs": {"type": ["object", "null"]},
        },
    }
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": name},
            "created": {"type": "integer"},
            "model": {"type": "string", "description": "The immutable name: `<adapter>@v<N>`."},
            "choices": {"type": "array", "items": choice, "minItems": 1},
            "usage": _USAGE,
        },
    }


_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A chunk as JSON, or `[DONE]`."}},
}


def _answer(schema: dict[str, Any]) -> Responses:
    """Whole, or with `stream` as events."""
    content = {
        "application/json": {"schema": schema},
        "text/event-stream": {"schema": _EVENT},
    }
    return {200: {"description": "The answer.", "content": content}}


CHAT_ANSWER = _answer(_completion("chat.completion", "message", _MESSAGE))
COMPLETION_ANSWER = _answer(_completion("text_completion", "text", {"type": "string"}))

_GENERATED = {
    "type": "object",
    "required": ["generated_text"],
    "properties": {
        "generated_text": {"type": "string"},
        "details": {"type": ["object", "null"]},
    },
}
LORAX_ANSWER = _answer({"anyOf": [_GENERATED, {"type": "array", "items": _GENERATED}]})

TEXT_ANSWER: Responses = {
    200: {"description": "Done.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
