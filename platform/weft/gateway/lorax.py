"""LoRAX's routes: `/generate`, `/generate_stream`, and `/`, which its own Python client calls.

`parameters.adapter_id` is any name that OpenAI's routes take as `model`, of the caller's tenant.
Errors on these routes have LoRAX's shape.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from weft.errors import InvalidRequestError, WeftError
from weft.gateway.answer_schemas import LORAX_ANSWER
from weft.gateway.answering import answer
from weft.gateway.error_handlers import refused_body, refused_request
from weft.gateway.lorax_schemas import LoraxParameters, LoraxRequest
from weft.gateway.lorax_wire import LoraxFormat, LoraxShape, lorax_error
from weft.gateway.prompts import adapter_conflict, encode_prompts
from weft.gateway.runtime import Gateway, GatewayDep, get_gateway
from weft.gateway.schemas import CompletionRequest
from weft.gateway.wire import Wire
from weft.registry.merging import WantedMerge
from weft.tenancy.auth import require
from weft.tenancy.principal import Principal

# what LoRAX itself calls the base
_BASE_NAME = "__base_model__"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class LoraxRoute(APIRoute):
    """A route whose errors have LoRAX's shape."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_in_shape(request: Request) -> Response:
            try:
                return await handle(request)
            except WeftError as error:
                refused = error
            except RequestValidationError as error:
                refused = refused_body(error)
            except HTTPException as error:
                refused = refused_request(request, error)
            status, wire = _to_error(get_gateway(request), refused)
            return JSONResponse(wire, status, dict(refused.headers))

        return handle_in_shape


def _to_error(gateway: Gateway, error: WeftError) -> tuple[int, Wire]:
    return lorax_error(error, has_lorax_statuses=gateway.settings.lorax_status_codes)


router = APIRouter(tags=["lorax"], route_class=LoraxRoute)

Caller = Annotated[Principal, Depends(require("inference"))]


@router.post("/generate", response_class=Response, responses=LORAX_ANSWER)
async def generate(
    principal: Caller, body: LoraxRequest, request: Request, gateway: GatewayDep
) -> Response:
    """The whole answer as one object."""
    if body.stream:
        raise InvalidRequestError("'stream' is for '/'; use '/generate_stream'.", param="stream")
    return await _generate(gateway, principal, body, request, stream=False)


@router.post("/generate_stream", response_class=Response, responses=LORAX_ANSWER)
async def generate_stream(
    principal: Caller, body: LoraxRequest, request: Request, gateway: GatewayDep
) -> Response:
    """An event for each token."""
    return await _generate(gateway, principal, body, request, stream=True)


@router.post("/", response_class=Response, responses=LORAX_ANSWER)
async def generate_compatibly(
    principal: Caller, body: LoraxRequest, request: Request, gateway: GatewayDep
) -> Response:
    """Either, by `stream`; the whole answer is the one element of a list."""
    return await _generate(gateway, principal, body, request, stream=body.stream, is_listed=True)


def _model_of(given: LoraxParameters, base_name: str) -> str | WantedMerge:
    if given.merged_adapters is not None:
        if given.adapter_id:
            raise adapter_conflict()
        return given.merged_adapters.to_wanted()
    if not given.adapter_id or given.adapter_id == _BASE_NAME:
        return base_name
    return given.adapter_id


async def _generate(
    gateway: Gateway,
    principal: Principal,
    body: LoraxRequest,
    request: Request,
    *,
    stream: bool,
    is_listed: bool = False,
) -> Response:
    given = body.parameters or LoraxParameters()
    model = await gateway.resolve(principal, _model_of(given, gateway.base.name))
    tokens = await gateway.tokens_of(model)
    (prompt,) = await encode_prompts(
        CompletionRequest(prompt=body.inputs), tokens.tokenizer, tokens.vocab_size, 1
    )
    if given.truncate is not None:
        prompt = prompt[-given.truncate :]
    seed = secrets.randbits(64) if given.seed is None else given.seed
    completion = body.to_completion(prompt, seed, gateway.engine.info.max_model_len, stream=stream)
    shape = LoraxShape(
        full_text=body.inputs if given.return_full_text else "",
        has_details=given.details,
        has_alternatives=given.return_k_alternatives is not None,
        seed=seed if given.is_sampling else None,
        stop=tuple(given.stop),
        end_ids=tokens.tokenizer.eos_token_ids,
        is_listed=is_listed,
    )
    # the first use reads the whole vocabulary
    vocabulary = await asyncio.to_thread(lambda: tokens.tokenizer.vocabulary)
    answer_format = LoraxFormat(vocabulary, shape, lambda error: _to_error(gateway, error))
    headers = {"x-model-id": gateway.base.name}
    if model.digest is not None:
        ids = model.merged_from or (given.adapter_id or "",)
        headers |= {"x-adapter-id": ",".join(ids), "x-adapter-source": "local"}
    return await answer(
        gateway, principal, completion, request, model, [prompt], answer_format, headers
    )
