"""The OpenAPI document: what FastAPI knows of the routes, and what every route has in common.

The errors, who may call a route, and how they say who they are follow from the routes' own marks.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from weft.idempotency.routes import PARAMETER, REPLAYED, REPLAYED_HEADER, KeyedRoute
from weft.tenancy.auth import AUTH_MARK, AuthMark

_ERROR = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}
_BEARER, _SESSION = "key", "session"
_SCHEMES = {
    _BEARER: {"type": "http", "scheme": "bearer", "description": "An API key: weft_..."},
    _SESSION: {
        "type": "apiKey",
        "in": "cookie",
        "name": "__Host-weft_session",
        "description": "A person's session, made by signing in.",
    },
}
_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "public": [],
    "key": [{_BEARER: []}],
    "admin": [{_BEARER: []}, {_SESSION: []}],
    "key or admin": [{_BEARER: []}, {_SESSION: []}],
    "operator": [{_BEARER: []}, {_SESSION: []}],
    "person": [{_SESSION: []}],
}
_WORDS = {
    400: "The request is wrong.",
    401: "No valid key or session was sent.",
    403: "The key or session may not do this.",
    404: "There is no such thing, or it is not the caller's.",
    408: "The body did not come in time.",
    409: "It collides with what is there.",
    413: "The body is too large.",
    415: "The body is in a form that is not read.",
    429: "Too much at a time, or a limit is used up.",
    500: "The server had an error.",
    503: "The server cannot do this now; `retry-after` says when to try again.",
}
_LORAX_ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
_LORAX_TAG = "lorax"
_WRITES = frozenset({"post", "put", "patch", "delete"})


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of all routes that are in the schema."""
    document: dict[str, Any] = app.openapi()
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = _ERROR
    schemas["LoraxError"] = _LORAX_ERROR
    components["securitySchemes"] = _SCHEMES
    for path, method, mark in _marked_operations(app):
        operation = document["paths"].get(path, {}).get(method)
        if operation is not None:
            operation["security"] = _SECURITY[mark.audience]
            _describe_errors(operation, method, path, mark)
    for path in _keyed_paths(app):
        _describe_key(document["paths"][path]["post"])
    return document


def _marked_operations(app: FastAPI) -> list[tuple[str, str, AuthMark]]:
    found = []
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        assert isinstance(route, APIRoute), f"{route} is no API route"
        for dependency in route.dependant.dependencies:
            mark = getattr(dependency.call, AUTH_MARK, None)
            if mark is not None:
                found += [
                    (route.path_format, method.lower(), mark) for method in route.methods or ()
                ]
    return found


def _keyed_paths(app: FastAPI) -> list[str]:
    """Of the routes whose POST takes an idempotency key."""
    return [
        context.original_route.path_format
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, KeyedRoute)
        and "POST" in (context.original_route.methods or ())
    ]


def _describe_key(operation: dict[str, Any]) -> None:
    parameters = operation.setdefault("parameters", [])
    if PARAMETER in parameters:  # FastAPI keeps its document
        return
    parameters.append(PARAMETER)
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            response.setdefault("headers", {})[REPLAYED] = REPLAYED_HEADER


def _describe_errors(operation: dict[str, Any], method: str, path: str, mark: AuthMark) -> None:
    responses = operation["responses"]
    told = responses.get("422", {}).get("description")
    if told == "Validation Error":  # FastAPI's own, which never leaves this server
        del responses["422"]
    statuses = {400, 408, 413, 415, 429, 500, 503}
    if mark.audience != "public":
        statuses |= {401, 403}
    if "{" in path or method in _WRITES:
        statuses.add(404)
    if method in _WRITES:
        statuses.add(409)
    names = ["Error"]
    if _LORAX_TAG in operation.get("tags", ()):  # it answers in LoRAX's words, the door in ours
        names.append("LoraxError")
    for status in sorted(statuses):
        responses.setdefault(str(status), _response(_WORDS[status], names))
    responses.setdefault("default", _response("Another error.", names))


def _response(description: str, names: list[str]) -> dict[str, Any]:
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
