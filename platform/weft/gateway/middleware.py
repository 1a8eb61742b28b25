"""The one layer around everything: request id, body limit, headers, and the last catch of errors.

Pure ASGI, so that streams are not buffered and disconnects reach the endpoints.
"""

from __future__ import annotations

import logging
import time

from fastapi import HTTPException
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.db.ids import create_id
from weft.errors import WeftError
from weft.gateway.error_handlers import error_response

logger = logging.getLogger("weft.gateway")

_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class RequestContextMiddleware:
    """Gives `state.request_id` and sets the headers that every response has, errors included.

    A body may have `state.max_body_bytes`; a route that counts for itself sets that to None before
    it reads.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        state = scope.setdefault("state", {})
        state["request_id"] = create_id("req")
        state["max_body_bytes"] = self._max_body_bytes
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = state["request_id"]
                headers["openai-processing-ms"] = str(int((time.monotonic() - started_s) * 1000))
                headers["openai-version"] = "2020-10-01"
                if "tenant_id" in state:
                    headers["openai-organization"] = state["tenant_id"]
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, _limited(scope, receive), send_with_headers)
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


def _limited(scope: Scope, receive: Receive) -> Receive:
    """`receive`, raising 413 (FastAPI passes only its own exceptions on from a body) at the cap."""
    num_bytes = 0

    async def limited() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        cap = scope["state"]["max_body_bytes"]
        if cap is not None and num_bytes > cap:
            raise HTTPException(413)
        return message

    return limited
