"""From a request's body to tokens and sampling parameters, or a refusal that names the parameter.

Knows the tokenizer and the context length; neither the engine nor tenants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from weft.errors import InvalidRequestError
from weft.gateway.parameters import refuse_extras
from weft.gateway.schemas import (
    ChatRequest,
    CompletionRequest,
    InferenceRequest,
    require_unicode,
)
from weft.messages import SamplingParams
from weft.tokenizer import BaseTokenizer

COMPLETION_MAX_TOKENS = 16
# tokenizing this much takes about as long as a hop to a thread costs
_THREAD_CHARS = 4096


def model_of(body: InferenceRequest) -> str:
    """The one name given by `model` and `adapter_id`."""
    if body.model and body.adapter_id and body.model != body.adapter_id:
        raise InvalidRequestError(
            "'model' and 'adapter_id' name different models; send one of them.", param="adapter_id"
        )
    name = body.adapter_id or body.model
    if not name:
        raise InvalidRequestError("You must provide 'model'.", param="model")
    return name


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


async def encode_chat(body: ChatRequest, tokenizer: BaseTokenizer) -> tuple[int, ...]:
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
    body: CompletionRequest, tokenizer: BaseTokenizer, vocab_size: int, max_prompts: int
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
    prompt: object, tokenizer: BaseTokenizer, vocab_size: int
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


def create_sampling(
    body: InferenceRequest, prompts: Sequence[tuple[int, ...]], max_model_len: int
) -> list[SamplingParams]:
    """Per prompt, since the room left differs. vLLM's defaults: 16 tokens, for chat the room."""
    requested = body.requested_max_tokens
    sampling = []
    for prompt in prompts:
        room = max_model_len - len(prompt)
        if room < 1 or (requested is not None and requested > room):
            prompt_param = "messages" if isinstance(body, ChatRequest) else "prompt"
            raise _too_long(len(prompt), requested, max_model_len, prompt_param)
        if requested is not None:
            limit = requested
        else:
            limit = room if isinstance(body, ChatRequest) else min(COMPLETION_MAX_TOKENS, room)
        sampling.append(_sampling(body, limit))
    return sampling


def _sampling(body: InferenceRequest, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        seed=body.seed,
        stop=body.stop_strings,
        ignore_eos=bool(body.ignore_eos),
    )


def _too_long(
    num_prompt: int, requested: int | None, max_model_len: int, prompt_param: str
) -> InvalidRequestError:
    wanted = "" if requested is None else f" and up to {requested} more were asked for"
    return InvalidRequestError(
        f"This model's maximum context length is {max_model_len} tokens, but the prompt has "
        f"{num_prompt} tokens{wanted}. Shorten the prompt or lower the number of tokens.",
        param="max_tokens"
        if requested is not None and num_prompt < max_model_len
        else prompt_param,
        code="context_length_exceeded",
    )
