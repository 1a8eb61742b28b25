"""A span for each inference request, by OpenTelemetry's conventions for generative AI.

A span says who asked for what and what came of it, never what was said: no prompt, no answer, no
stop string, no key. Not part of an app that makes no spans.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.gateway.generation import Generation
from weft.gateway.schemas import InferenceRequest
from weft.gateway.wire import Choice
from weft.registry.service import ResolvedModel
from weft.tenancy.principal import Principal

if TYPE_CHECKING:
    from weft.telemetry.spans import SpanSender

logger = logging.getLogger("weft.gateway")

Attributes: TypeAlias = dict[str, str | bool | int | float | Sequence[str]]

# the gen_ai.operation.name of each route's requests
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/generate_stream": "text_completion",
    "/": "text_completion",
}


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was admitted: found in `state.answered` by whoever makes its span."""

    principal: Principal
    body: InferenceRequest
    model: ResolvedModel
    generation: Generation
    choices: Sequence[Choice]


class TracingMiddleware:
    """The outermost layer: a span covers all that the server does for a request."""

    def __init__(self, app: ASGIApp, sender: SpanSender) -> None:
        self._app, self._sender = app, sender

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _OPERATIONS.get(scope["path"]) if scope["type"] == "http" else None
        if operation is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        started_ns = time.time_ns()
        first_ns = 0  # when the first part of the answer went out

        async def send_timed(message: Message) -> None:
            nonlocal first_ns
            if first_ns == 0 and message.get("body"):
                first_ns = time.time_ns()
            await send(message)

        try:
            await self._app(scope, receive, send_timed)
        finally:
            try:
                self._tell(scope, operation, started_ns, first_ns)
            except Exception:  # whatever it is, the request has nothing to do with it
                logger.exception("a span could not be made")

    def _tell(self, scope: Scope, operation: str, started_ns: int, first_ns: int) -> None:
        state = scope["state"]
        answered: Answered | None = state.get("answered")
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "weft",
            "weft.request_id": state["request_id"],
        }
        status: int | None = state.get("status")
        if status is not None:
            attributes["http.response.status_code"] = status
        fault = _fault_of(status, answered)
        if fault is not None:
            attributes["error.type"] = fault
        name = operation
        if answered is not None:
            attributes |= attributes_of(answered)
            name = f"{operation} {attributes['gen_ai.request.model']}"
            if answered.body.stream and first_ns:
                waited_s = (first_ns - started_ns) / 1e9
                attributes["gen_ai.response.time_to_first_chunk"] = waited_s
        elif "tenant_id" in state:
            attributes["weft.tenant_id"] = state["tenant_id"]
        self._sender.send(
            name,
            started_ns,
            time.time_ns(),
            attributes,
            traceparent=Headers(scope=scope).get("traceparent"),
            has_failed=fault is not None and not fault.startswith("4"),
        )


def attributes_of(answered: Answered) -> Attributes:
    """Who asked for what, and what was generated until now."""
    body, model, usages = answered.body, answered.model, answered.generation.usages
    found: dict[str, str | bool | int | float | Sequence[str] | None] = {
        "gen_ai.request.model": body.adapter_id or body.model or model.name,
        "gen_ai.request.max_tokens": body.requested_max_tokens,
        "gen_ai.request.temperature": body.temperature,
        "gen_ai.request.top_p": body.top_p,
        "gen_ai.request.top_k": body.top_k,
        "gen_ai.request.frequency_penalty": body.frequency_penalty,
        "gen_ai.request.presence_penalty": body.presence_penalty,
        "gen_ai.request.seed": body.seed,
        "gen_ai.request.choice.count": body.n if body.n != 1 else None,
        "gen_ai.request.stream": bool(body.stream),
        "gen_ai.response.model": model.name,
        "gen_ai.response.finish_reasons": [
            c.finish_reason for c in answered.choices if c.finish_reason
        ],
        "gen_ai.usage.input_tokens": sum(usage.num_prompt_tokens for usage in usages),
        "gen_ai.usage.output_tokens": sum(usage.num_completion_tokens for usage in usages),
        "gen_ai.usage.cache_read.input_tokens": sum(usage.num_cached_tokens for usage in usages),
        "weft.tenant_id": answered.principal.tenant_id,
        "weft.project_id": answered.principal.project_id,
        "weft.base_model": model.base_name,
        "weft.adapter_id": model.adapter_id,
        "weft.adapter_version": model.version,
        "weft.adapter_digest": model.digest,
    }
    return {name: value for name, value in found.items() if value is not None}


def _fault_of(status: int | None, answered: Answered | None) -> str | None:
    """An `error.type`: what went wrong, in a few words that are always the same."""
    if status is not None and status >= 400:
        return str(status)
    if answered is not None:
        if answered.generation.is_too_slow:
            return "slow_reader"
        if answered.generation.is_cancelled:
            return "client_disconnected"
        if any(choice.finish_reason in ("abort", "error") for choice in answered.choices):
            return "generation_failed"
    return "client_disconnected" if status is None else None
