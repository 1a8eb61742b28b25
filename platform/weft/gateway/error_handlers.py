"""Every error leaves as OpenAI's error object, whoever raised it.

Knows the shape of errors only; what an error means was decided where it was raised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from weft.errors import (
    InvalidRequestError,
    NotFoundError,
    WeftError,
)

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# pydantic names the branch of a union in an error's place; callers never wrote these words
_BRANCHES = frozenset({"str", "int", "float", "bool", "TextPart", "constrained-str"})


class MethodNotAllowedError(WeftError):
    """The path exists, the method does not."""

    status_code = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyRefusedError(HTTPException):
    """A body that no route is to read. FastAPI passes only its own exceptions on from a body."""

    def __init__(self, error: WeftError) -> None:
        super().__init__(error.status_code, error.message, dict(error.headers))
        self.error = error


def error_to_wire(error: WeftError) -> dict[str, object]:
    """OpenAI's error object; `details` only where there are some."""
    body: dict[str, object] = {
        # it may quote the caller, whose JSON can spell what is no Unicode
        "message": error.message.encode("utf-8", "replace").decode(),
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    if error.details:
        body["details"] = [dict(detail) for detail in error.details]
    return {"error": body}


def error_response(error: WeftError) -> JSONResponse:
    return JSONResponse(error_to_wire(error), error.status_code, dict(error.headers))


def install_error_handlers(app: FastAPI) -> None:
    """The bare `Exception` is caught by the outermost middleware, which also logs it."""
    app.add_exception_handler(WeftError, _on_weft_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_weft_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, WeftError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(refused_request(request, error))


def refused_request(request: Request, error: HTTPException) -> WeftError:
    """What the framework refused, in our words."""
    translated = _translate(request, error)
    translated.headers.update(error.headers or {})
    return translated


def _translate(request: Request, error: HTTPException) -> WeftError:
    if isinstance(error, BodyRefusedError):
        return error.error
    url = f"{request.method} {request.scope['path']}"
    if error.status_code == 404:
        return NotFoundError(f"Unknown URL: {url}")
    if error.status_code == 405:
        return MethodNotAllowedError(f"Not allowed: {url}")
    if error.status_code < 500:
        return unreadable_body()
    return WeftError("The server had an error.")


async def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_response(refused_body(error))


def refused_body(error: RequestValidationError) -> InvalidRequestError:
    """The first thing that is wrong with a request's body or parameters."""
    first = error.errors()[0]
    place = _place(first["loc"])
    if first["type"] == "json_invalid":
        return invalid_json()
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"Unknown parameter: '{place}'.", param=place, code="unknown_parameter"
        )
    if not place:
        return no_json_object()
    return InvalidRequestError(f"Invalid '{place}': {first['msg']}.", param=place)


def invalid_json() -> InvalidRequestError:
    return InvalidRequestError("The body is not valid JSON.", code="invalid_json")


def unreadable_body() -> InvalidRequestError:
    return InvalidRequestError("The request body could not be read.", code="invalid_json")


def no_json_object() -> InvalidRequestError:
    return InvalidRequestError(
        "The body must be a JSON object, sent with 'Content-Type: application/json'.",
        code="invalid_json",
    )


def _place(loc: Sequence[str | int]) -> str:
    """`("body", "messages", 0, "content", "str")` is `messages[0].content`."""
    text = ""
    for part in loc[1:]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _FIELD.fullmatch(part) and part not in _BRANCHES:
            text += f".{part}" if text else part
    return text
