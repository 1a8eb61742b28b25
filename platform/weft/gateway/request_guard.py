"""What a request must be before any route sees it: for a host of ours, in time, and bounded.

Pure ASGI. The body of a JSON request is read whole and measured before it is parsed; other bodies
pass on as they come, counted and timed. What is wrong with a body is raised where a route reads it,
so that the route's own form of errors holds.
"""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
    WeftError,
)
from weft.gateway.error_handlers import BodyRefusedError, error_response
from weft.gateway.hosts import AllowedHosts
from weft.gateway.json_bounds import find_excess

# what a body has to come with, once its first seconds are over
MIN_BYTES_PER_S = 4096
_MAX_CLIENT_ID = 512


class RequestGuard:
    """Refuses with OpenAI's error object; `max_body_bytes` bounds JSON, others by their routes."""

    def __init__(
        self, app: ASGIApp, hosts: AllowedHosts, max_body_bytes: int, body_timeout_s: float
    ) -> None:
        self._app, self._hosts = app, hosts
        self._max_body_bytes, self._body_timeout_s = max_body_bytes, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"]["max_body_bytes"] = self._max_body_bytes
        headers = Headers(scope=scope)
        try:
            self._check(headers)
        except WeftError as error:
            await error_response(error)(scope, receive, send)
            return
        limited = self._json(headers, receive) if _is_json(headers) else self._other(scope, receive)
        await self._app(scope, limited, send)

    def _check(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._hosts.allow(hosts[0]):
            raise InvalidRequestError("This server does not answer for that host.", param="Host")
        encoding = headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise UnsupportedMediaTypeError("Bodies are read as they are, not compressed.")
        if not is_client_id(headers.get("x-client-request-id", "-")):
            raise InvalidRequestError(
                f"An X-Client-Request-Id is 1 to {_MAX_CLIENT_ID} printable ASCII characters.",
                param="X-Client-Request-Id",
            )

    async def _read_json(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body."""
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._max_body_bytes:
            raise BodyRefusedError(_too_large(self._max_body_bytes))
        body = bytearray()
        clock = _BodyClock(self._body_timeout_s)
        while True:
            try:
                async with asyncio.timeout(clock.seconds_left(len(body))):
                    message = await receive()
            except TimeoutError:
                raise BodyRefusedError(RequestTimeoutError()) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect  # before the body was there
            body += message.get("body", b"")
            if len(body) > self._max_body_bytes:
                raise BodyRefusedError(_too_large(self._max_body_bytes))
            if not message.get("more_body", False):
                break
        text = bytes(body)
        excess = find_excess(text)
        if excess is not None:
            raise BodyRefusedError(InvalidRequestError(excess, code="invalid_json"))
        return text

    def _json(self, headers: Headers, receive: Receive) -> Receive:
        """The body in one message, then whatever comes after it: the end of the connection."""
        is_read = False

        async def read_whole() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            body = await self._read_json(headers, receive)
            return {"type": "http.request", "body": body, "more_body": False}

        return read_whole

    def _other(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, up to the route's cap and in time."""
        num_bytes = 0
        is_over = False
        clock = _BodyClock(self._body_timeout_s)

        async def limited() -> Message:
            nonlocal num_bytes, is_over
            if is_over:  # what comes now is the end of the connection, which may take its time
                return await receive()
            try:
                async with asyncio.timeout(clock.seconds_left(num_bytes)):
                    message = await receive()
            except TimeoutError:
                raise BodyRefusedError(RequestTimeoutError()) from None
            num_bytes += len(message.get("body", b""))
            is_over = not message.get("more_body", False)
            cap = scope["state"]["max_body_bytes"]
            if cap is not None and num_bytes > cap:
                raise BodyRefusedError(_too_large(cap))
            return message

        return limited


def is_client_id(text: str) -> bool:
    """Whether a client's own id of a request can be said back to it."""
    return 0 < len(text) <= _MAX_CLIENT_ID and text.isascii() and text.isprintable()


class _BodyClock:
    """When a body has to have come, by how much of it has."""

    def __init__(self, timeout_s: float) -> None:
        self._started_s = time.monotonic()
        self._timeout_s = timeout_s

    def seconds_left(self, num_bytes: int) -> float:
        allowed_s = self._timeout_s + num_bytes / MIN_BYTES_PER_S
        return self._started_s + allowed_s - time.monotonic()


def _is_json(headers: Headers) -> bool:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")


def _too_large(max_bytes: int) -> PayloadTooLargeError:
    # what has not been read is not waited for either
    close = {"connection": "close"}
    return PayloadTooLargeError(f"The request body has more than {max_bytes} bytes.", headers=close)
