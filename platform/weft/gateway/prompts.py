"""From a request's body to tokens, or a refusal that names the parameter.

Knows the tokenizer; neither the engine nor tenants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from weft.errors import InvalidRequestError
from weft.gateway.parameters import refuse_extras
from weft.gateway.schemas import (
    ChatRequest,
    CompletionRequest,
    InferenceRequest,
    require_unicode,
)
from weft.registry.merging import WantedMerge
from weft.tokenizer import ChatTokenizer

# tokenizing this much takes about as long as a hop to a thread costs
_THREAD_CHARS = 4096


def model_of(body: InferenceRequest, base_name: str) -> str | WantedMerge:
    """The one model given by `model`, `adapter_id` and `merged_adapters`; the last one's `model` is
    the base, if it is given."""
    if body.merged_adapters is not None:
        if body.adapter_id is not None or body.model not in (None, base_name):
            raise adapter_conflict()
        return body.merged_adapters.to_wanted()
    if body.model and body.adapter_id and body.model != body.adapter_id:
        raise InvalidRequestError(
            "'model' and 'adapter_id' name different models; send one of them.", param="adapter_id"
        )
    name = body.adapter_id or body.model
    if not name:
        raise InvalidRequestError("You must provide 'model'.", param="model")
    return name


def adapter_conflict() -> InvalidRequestError:
    """An adapter by its name, and others to be merged."""
    return InvalidRequestError(
        "A request has one adapter or 'merged_adapters', not both; with the latter, 'model' is the "
        "base model's name or left out.",
        param="merged_adapters",
        code="adapter_conflict",
    )


def check_parameters(body: InferenceRequest) -> None:
    """Refuse what would have to be ignored."""
    refuse_extras(body.model_extra or {})
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError(
            "'stream_options' is only allowed with 'stream': true.", param="stream_options"
        )
    if isinstance(body, ChatRequest):
        _check_chat(body)


def _check_chat(body: ChatRequest) -> None:
    limits = (body.max_tokens, body.max_completion_tokens)
    if None not in limits and limits[0] != limits[1]:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' differ; send one of them.",
            param="max_completion_tokens",
        )
    for i, message in enumerate(body.messages):
        for name, value in (message.model_extra or {}).items():
            if value not in (None, []):
                raise InvalidRequestError(
                    f"Unsupported parameter: 'messages[{i}].{name}' is not supported.",
                    param=f"messages[{i}].{name}",
                    code="unsupported_parameter",
                )


async def encode_chat(body: ChatRequest, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """The conversation through the base's chat template."""
    messages = [
        {"role": "system" if m.role == "developer" else m.role, "content": m.text}
        for m in body.messages
    ]
    size = sum(len(message["content"]) for message in messages)
    try:
        return tuple(await _encode(size, lambda: tokenizer.encode_chat(messages)))
    except ValueError as error:
        raise InvalidRequestError(str(error), param="messages") from error


async def encode_prompts(
    body: CompletionRequest, tokenizer: ChatTokenizer, vocab_size: int, max_prompts: int
) -> list[tuple[int, ...]]:
    """One entry per prompt: a string is one, a list of tokens is one, else each element is."""
    prompt = body.prompt
    if isinstance(prompt, str) or (_is_token_list(prompt) and prompt):
        prompts = [prompt]
    elif isinstance(prompt, list) and prompt:
        prompts = prompt
    else:
        raise _bad_prompt()
    if len(prompts) > max_prompts:
        raise InvalidRequestError(
            f"At most {max_prompts} prompts are taken in one request.", param="prompt"
        )
    return [await _encode_prompt(item, tokenizer, vocab_size) for item in prompts]


async def _encode_prompt(
    prompt: object, tokenizer: ChatTokenizer, vocab_size: int
) -> tuple[int, ...]:
    if isinstance(prompt, str):
        text = prompt
        try:
            require_unicode(text)
        except ValueError as error:
            raise InvalidRequestError(f"Invalid 'prompt': {error}.", param="prompt") from error
        ids = await _encode(len(text), lambda: tokenizer.encode(text))
    elif isinstance(prompt, list) and _is_token_list(prompt):
        ids = prompt
    else:
        raise _bad_prompt()
    if not ids:
        raise InvalidRequestError("The prompt is empty.", param="prompt")
    bad = next((token for token in ids if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise InvalidRequestError(
            f"Token id {bad} is outside the vocabulary of {vocab_size}.", param="prompt"
        )
    return tuple(ids)


def _is_token_list(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _bad_prompt() -> InvalidRequestError:
    return InvalidRequestError(
        "'prompt' must be a string, a list of token ids, or a non-empty list of either.",
        param="prompt",
    )


async def _encode(num_chars: int, encode: Callable[[], list[int]]) -> list[int]:
    return encode() if num_chars < _THREAD_CHARS else await asyncio.to_thread(encode)
