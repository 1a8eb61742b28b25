"""Endpoints that are found by their path alone and are called with nothing in between.

FastAPI looks at every route in turn and works out anew for each request what an endpoint is called
with, which takes it longer than all that inference does with a request. What the endpoints here
need is known when the app is made: a JSON body, the request, and dependencies that take the request
alone. Their routes stay FastAPI's: what they declare is what is called.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any, TypeAlias

from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from weft.errors import WeftError
from weft.gateway.error_handlers import (
    error_response,
    invalid_json,
    no_json_object,
    refused_body,
    refused_request,
    unreadable_body,
)

Endpoint: TypeAlias = Callable[..., Coroutine[Any, Any, Response]]
Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]
Dependency: TypeAlias = Callable[[Request], Awaitable[object]]


class DirectRoutes:
    """ASGI: POSTs to the routes of `endpoints`, which are among `routes`; all else goes on.

    TypeError when an endpoint needs more than this can give it.
    """

    def __init__(
        self, app: ASGIApp, routes: Sequence[BaseRoute], endpoints: Collection[Endpoint]
    ) -> None:
        self._app = app
        self._handlers: dict[str, Handler] = {}
        for context in iter_route_contexts(routes):
            if context.endpoint in endpoints:
                assert context.path is not None, "a route of an endpoint has a path"
                self._handlers[context.path] = create_handler(context)
        if len(self._handlers) != len(endpoints):
            raise TypeError(f"{len(self._handlers)} routes for {len(endpoints)} endpoints")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = None
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = self._handlers.get(scope["path"])
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        response: Response
        try:
            response = await handler(request)
        except WeftError as error:
            response = error_response(error)
        except RequestValidationError as error:
            response = error_response(refused_body(error))
        except HTTPException as error:
            response = error_response(refused_request(request, error))
        await response(scope, receive, send)


def create_handler(context: RouteContext) -> Handler:
    """What FastAPI would do for this route, worked out once.

    In FastAPI's order: what is no JSON is refused before anybody asks who sent it, what is wrong
    with its values after.
    """
    dependant, body_field, endpoint = context.dependant, context.body_field, context.endpoint
    assert endpoint is not None, "it was found by its endpoint"
    where = f"{context.methods} {context.path}"
    if body_field is None or context.methods != {"POST"} or "{" in (context.path or ""):
        raise TypeError(f"{where}: a direct route is a POST of one body to a fixed path")
    if not inspect.iscoroutinefunction(endpoint):
        raise TypeError(f"{where}: {endpoint} is no coroutine function")
    _refuse_parameters(where, dependant)
    dependencies = [(each.name, _dependency(where, each)) for each in dependant.dependencies]
    request_name = dependant.request_param_name

    async def handle(request: Request) -> Response:
        body = await _read_json(request)
        values: dict[str, object] = {}
        for name, call in dependencies:
            value = await call(request)
            if name is not None:
                values[name] = value
        if body is None:
            raise no_json_object()
        values[body_field.name], errors = body_field.validate(body, {}, loc=("body",))
        if errors:
            raise RequestValidationError(errors, body=body)
        if request_name is not None:
            values[request_name] = request
        response: Response = await endpoint(**values)
        return response

    return handle


async def _read_json(request: Request) -> object:
    """The body's value; None where there is none, or it is said to be something else."""
    body = await request.body()
    if not body or not _is_json(request.headers.get("content-type", "")):
        return None
    try:
        value: object = json.loads(body)
    except json.JSONDecodeError as error:
        raise invalid_json() from error
    except ValueError as error:  # no Unicode, or a number beyond reason
        raise unreadable_body() from error
    return value


def _is_json(content_type: str) -> bool:
    main, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return main == "application" and (subtype == "json" or subtype.endswith("+json"))


def _dependency(where: str, dependant: Dependant) -> Dependency:
    """A coroutine function of the request alone."""
    call = dependant.call
    _refuse_parameters(where, dependant)
    if dependant.dependencies or dependant.body_params or dependant.request_param_name is None:
        raise TypeError(f"{where}: {call} takes something other than the request")
    if not inspect.iscoroutinefunction(call):
        raise TypeError(f"{where}: {call} is no coroutine function")
    return call


def _refuse_parameters(where: str, dependant: Dependant) -> None:
    others = (
        dependant.path_params,
        dependant.query_params,
        dependant.header_params,
        dependant.cookie_params,
        dependant.http_connection_param_name,
        dependant.response_param_name,
        dependant.background_tasks_param_name,
        dependant.security_scopes_param_name,
    )
    if any(others):
        raise TypeError(f"{where}: {dependant.call} takes parameters that a direct route has not")
