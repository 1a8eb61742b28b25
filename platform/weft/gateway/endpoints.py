"""OpenAI's inference and model routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from weft.db.dependencies import ReadSession
from weft.gateway.answer_schemas import CHAT_ANSWER, COMPLETION_ANSWER
from weft.gateway.answering import answer, logprobs_format
from weft.gateway.prompts import (
    check_parameters,
    encode_chat,
    encode_prompts,
    model_of,
)
from weft.gateway.runtime import Gateway, GatewayDep
from weft.gateway.schemas import ChatRequest, CompletionRequest
from weft.gateway.wire import ChatFormat, CompletionFormat
from weft.registry.models import Adapter, AdapterVersion
from weft.registry.repository import RegistryRepository
from weft.registry.service import resolve_model
from weft.tenancy.auth import require
from weft.tenancy.principal import Principal

router = APIRouter(prefix="/v1", tags=["inference"])

Caller = Annotated[Principal, Depends(require("inference"))]


@router.post("/chat/completions", response_class=Response, responses=CHAT_ANSWER)
async def create_chat_completion(
    principal: Caller, body: ChatRequest, request: Request, gateway: GatewayDep
) -> Response:
    """OpenAI's chat completions, with vLLM's extra fields and `adapter_id`."""
    check_parameters(body)
    model = await gateway.resolve(principal, model_of(body, gateway.base.name))
    tokens = await gateway.tokens_of(model)
    prompts = [await encode_chat(body, tokens.tokenizer)]
    request_id: str = request.state.request_id
    logprobs = await logprobs_format(tokens, bool(body.logprobs))
    answer_format = ChatFormat(request_id, model.name, logprobs)
    return await answer(gateway, principal, body, request, model, prompts, answer_format)


@router.post("/completions", response_class=Response, responses=COMPLETION_ANSWER)
async def create_completion(
    principal: Caller, body: CompletionRequest, request: Request, gateway: GatewayDep
) -> Response:
    """OpenAI's completions; choice c of prompt p has index `p * n + c`."""
    check_parameters(body)
    model = await gateway.resolve(principal, model_of(body, gateway.base.name))
    tokens = await gateway.tokens_of(model)
    prompts = await encode_prompts(
        body, tokens.tokenizer, tokens.vocab_size, gateway.settings.max_prompts_per_request
    )
    request_id: str = request.state.request_id
    logprobs = await logprobs_format(tokens, body.logprobs is not None)
    answer_format = CompletionFormat(request_id, model.name, logprobs)
    return await answer(gateway, principal, body, request, model, prompts, answer_format)


DIRECT_ENDPOINTS = (create_chat_completion, create_completion)


@router.get("/models")
async def list_models(
    principal: Caller, session: ReadSession, gateway: GatewayDep
) -> dict[str, object]:
    """The base, and the caller's own adapters that can be called now."""
    repository = RegistryRepository(session, principal)
    found = await repository.list_servable(gateway.base.digest)
    cards = [_adapter_card(gateway, adapter.name, adapter, version) for adapter, version in found]
    return {"object": "list", "data": [_base_card(gateway), *cards]}


@router.get("/models/{model:path}")  # a base may be called "org/name"
async def get_model(
    principal: Caller, model: str, session: ReadSession, gateway: GatewayDep
) -> dict[str, object]:
    """Any name that a request may use."""
    resolved = await resolve_model(session, principal, gateway.base, model)
    if resolved.version is None:
        return _base_card(gateway)
    name = resolved.name.partition("@")[0]
    repository = RegistryRepository(session, principal)
    adapter = await repository.find_adapter(name)
    assert adapter is not None, "it was resolved in this transaction"
    version = await repository.find_version(adapter, resolved.version)
    assert version is not None, "it was resolved in this transaction"
    return _adapter_card(gateway, model, adapter, version)


def _base_card(gateway: Gateway) -> dict[str, object]:
    return {
        "id": gateway.base.name,
        "object": "model",
        "created": gateway.started_at,
        "owned_by": "weft",
        "root": gateway.base.name,
        "parent": None,
        "max_model_len": gateway.engine.info.max_model_len,
    }


def _adapter_card(
    gateway: Gateway, model_id: str, adapter: Adapter, version: AdapterVersion
) -> dict[str, object]:
    return {
        "id": model_id,
        "object": "model",
        "created": version.created_at,
        "owned_by": adapter.tenant_id,
        "root": f"{adapter.name}@v{version.number}",
        "parent": gateway.base.name,
        "max_model_len": gateway.engine.info.max_model_len,
    }
