"""From a body's parameters to the engine's, or a refusal that names the parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft.errors import InvalidRequestError
from weft.gateway.schemas import ChatRequest, CompletionRequest, InferenceRequest
from weft.messages import MAX_CHOICES, Grammar, SamplingParams

COMPLETION_MAX_TOKENS = 16


def create_sampling(
    body: InferenceRequest,
    prompts: Sequence[tuple[int, ...]],
    grammar: Grammar | None,
    *,
    max_model_len: int,
    vocab_size: int,
) -> list[SamplingParams]:
    """Per prompt, since the room left differs. vLLM's defaults: 16 tokens, for chat the room."""
    _check_choices(body, len(prompts))
    bias = _logit_bias(body.logit_bias or {}, vocab_size)
    _check_tokens(body.stop_token_ids or (), vocab_size, "stop_token_ids")
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
        sampling.append(_sampling(body, limit, bias, grammar))
    return sampling


def _sampling(
    body: InferenceRequest,
    max_tokens: int,
    logit_bias: tuple[tuple[int, float], ...],
    grammar: Grammar | None,
) -> SamplingParams:
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' is {min_tokens}, but the answer has at most {max_tokens} tokens.",
            param="min_tokens",
        )
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_given(body.temperature, 1.0),
        top_p=_given(body.top_p, 1.0),
        top_k=max(body.top_k or 0, 0),
        min_p=_given(body.min_p, 0.0),
        repetition_penalty=_given(body.repetition_penalty, 1.0),
        presence_penalty=_given(body.presence_penalty, 0.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        logit_bias=logit_bias,
        seed=body.seed,
        n=body.n or 1,
        stop=body.stop_strings,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        min_tokens=min_tokens,
        logprobs=_num_logprobs(body),
        grammar=grammar,
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_choices(body: InferenceRequest, num_prompts: int) -> None:
    if (body.n or 1) * num_prompts > MAX_CHOICES:
        raise InvalidRequestError(
            f"At most {MAX_CHOICES} choices are given for one request, over all its prompts.",
            param="n",
        )


def _num_logprobs(body: InferenceRequest) -> int | None:
    """Chat asks with a switch and a number, the legacy route with a number alone."""
    if isinstance(body, CompletionRequest):
        return body.logprobs
    assert isinstance(body, ChatRequest)
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequestError(
            "'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs"
        )
    return None


def _logit_bias(bias: Mapping[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, value in bias.items():
        # int() also takes "1_0", " 1" and digits of other scripts, which would be one token twice
        if not (key.isascii() and key.isdigit()) or (key[0] == "0" and key != "0"):
            raise InvalidRequestError(
                "'logit_bias' maps token ids, written as strings, to numbers.", param="logit_bias"
            )
        pairs.append((int(key[:20]), value))
    _check_tokens([token for token, _ in pairs], vocab_size, "logit_bias")
    return tuple(pairs)


def _check_tokens(tokens: Sequence[int], vocab_size: int, param: str) -> None:
    bad = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise InvalidRequestError(
            f"Token id {bad} in '{param}' is outside the vocabulary of {vocab_size}.", param=param
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
