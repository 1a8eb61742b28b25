"""From a resolved model and its prompts to an answer: the way of every inference route.

Knows the parameters that all of them share; what is read from a body before, and how the answer is
shown, is each route's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response

from weft.errors import InvalidRequestError
from weft.gateway.generation import Generation
from weft.gateway.logprobs import LogprobsFormat
from weft.gateway.model_tokens import ModelTokens
from weft.gateway.obfuscation import PaddedFrames
from weft.gateway.responses import AnswerResponse, EventStream
from weft.gateway.runtime import Gateway, Work
from weft.gateway.sampling import create_sampling
from weft.gateway.schemas import InferenceRequest, StreamOptions
from weft.gateway.structured import grammar_of
from weft.gateway.tracing import Answered
from weft.gateway.wire import AnswerFormat, frame
from weft.messages import Grammar
from weft.registry.service import ResolvedModel
from weft.tenancy.principal import Principal


async def answer(
    gateway: Gateway,
    principal: Principal,
    body: InferenceRequest,
    request: Request,
    model: ResolvedModel,
    prompts: list[tuple[int, ...]],
    answer_format: AnswerFormat,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Response:
    """Admit the prompts and answer in the format's shapes, whole or as a stream."""
    tokens = await gateway.tokens_of(model)
    grammar = await _prepare_grammar(gateway, body)
    sampling = create_sampling(
        body, prompts, grammar,
        max_model_len=gateway.engine.info.max_model_len, vocab_size=tokens.vocab_size,
    )  # fmt: skip
    work = Work(
        request.state.request_id, model, prompts, sampling, body.priority or 0,
        body.cache_salt or "", tokens.vocabulary,
    )  # fmt: skip
    generation = await gateway.admit(principal, work)
    request.state.rate_limit_headers = generation.headers
    headers = dict(headers)
    if model.digest is not None:
        headers["x-weft-adapter-version"] = model.name
        headers["x-weft-adapter-digest"] = model.digest
    if model.merged_from:
        headers["x-weft-merged-from"] = ", ".join(model.merged_from)
    response = _respond(gateway, principal, body, generation, answer_format, headers)
    if gateway.settings.otlp_endpoint is not None:
        request.state.answered = Answered(principal, body, model, generation, response.choices)
    return response


def _respond(
    gateway: Gateway,
    principal: Principal,
    body: InferenceRequest,
    generation: Generation,
    answer_format: AnswerFormat,
    headers: Mapping[str, str],
) -> AnswerResponse | EventStream:
    """Whole, or as a stream."""
    if not body.stream:
        return AnswerResponse(generation, answer_format, headers)
    options = body.stream_options or StreamOptions()
    is_padded = options.include_obfuscation
    if is_padded is None:
        is_padded = principal.include_obfuscation
    return EventStream(
        generation,
        answer_format,
        headers,
        include_usage=bool(options.include_usage),
        limits=gateway.limits,
        frame_event=PaddedFrames().frame if is_padded else frame,
    )


async def logprobs_format(tokens: ModelTokens, is_wanted: bool) -> LogprobsFormat | None:
    """How log-probabilities are shown, where they are."""
    if not is_wanted:
        return None
    # the first use reads the whole vocabulary
    return LogprobsFormat(await asyncio.to_thread(lambda: tokens.tokenizer.vocabulary))


async def _prepare_grammar(gateway: Gateway, body: InferenceRequest) -> Grammar | None:
    """The grammar that the answer must match, compiled where no other request waits for it."""
    found = grammar_of(body)
    if found is None:
        return None
    param, grammar = found
    try:
        await gateway.engine.prepare_grammar(grammar)
    except ValueError as error:
        raise InvalidRequestError(str(error), param=param) from error
    return grammar
