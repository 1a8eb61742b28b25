"""The layer around everything: request id, headers, and the last catch of errors.

Pure ASGI, so that streams are not buffered and disconnects reach the endpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.db.ids import create_id
from weft.errors import WeftError
from weft.gateway.error_handlers import error_response
from weft.gateway.request_guard import is_client_id
from weft.telemetry.logs import bind_request

logger = logging.getLogger("weft.gateway")
_access = logging.getLogger("weft.access")

_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # an answer is data: were a browser led to show one, it would load and run nothing
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
)
_HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")


class RequestContextMiddleware:
    """Gives `state.request_id` and sets the headers that every response has, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        state = scope.setdefault("state", {})
        state["request_id"] = create_id("req")
        client_id = Headers(scope=scope).get("x-client-request-id", "")
        bind_request(state["request_id"])
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                state["status"] = message["status"]
                elapsed_ms = int((time.monotonic() - started_s) * 1000)
                own = _own_headers(state, client_id, elapsed_ms)
                _add_headers(message, own, is_https=scope["scheme"] == "https")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            return  # it went while it was sending: no fault of ours, and nobody reads an answer
        except Exception:
            logger.exception("%s %s failed", state["request_id"], scope["path"])
            if has_started:
                raise  # the server cuts the connection: the client must not take it for an end
            error = WeftError(
                f"The server had an error. Tell the operator this id: {state['request_id']}."
            )
            await error_response(error)(scope, receive, send_with_headers)
        finally:
            _tell(scope, started_s)


def _own_headers(
    state: Mapping[str, Any], client_id: str, elapsed_ms: int
) -> list[tuple[bytes, bytes]]:
    """Those that no route sets."""
    headers = [
        (b"x-request-id", state["request_id"].encode()),
        (b"openai-processing-ms", b"%d" % elapsed_ms),
        (b"openai-version", b"2020-10-01"),
    ]
    if "tenant_id" in state:
        headers.append((b"openai-organization", state["tenant_id"].encode()))
    if is_client_id(client_id):
        headers.append((b"x-client-request-id", client_id.encode()))
    return headers


def _add_headers(message: Message, own: list[tuple[bytes, bytes]], *, is_https: bool) -> None:
    """`own`, and those of security that the route has not set. All names are in lower case."""
    given = message.get("headers", ())
    names = {name for name, _ in given}
    missing = [header for header in _SECURITY_HEADERS if header[0] not in names]
    if is_https and _HTTPS_ONLY[0] not in names:
        missing.append(_HTTPS_ONLY)
    message["headers"] = [*given, *own, *missing]


def _tell(scope: Scope, started_s: float) -> None:
    """A line for the request: what it asked for and what came of it, not what it said."""
    if not _access.isEnabledFor(logging.INFO):
        return
    state = scope["state"]
    _access.info(
        "request",
        extra={
            "method": scope["method"],
            "path": scope["path"],
            # 499: the client was gone before there was an answer
            "status": state.get("status", 499),
            "duration_ms": int((time.monotonic() - started_s) * 1000),
            "tenant_id": state.get("tenant_id"),
        },
    )
