"""uvicorn's protocol with a deadline on the head of a request, and errors as OpenAI's object.

Without the deadline a client holds a connection for as long as it likes by sending its headers one
byte at a time; uvicorn's own timer covers only what is silent between two requests.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from weft.errors import InvalidRequestError, RequestTimeoutError, WeftError
from weft.gateway.error_handlers import error_response

MAX_HEAD_BYTES = 32 * 1024


class GuardedProtocol(H11Protocol):
    """One connection. Subclasses set `head_timeout_s`, see `create_protocol`."""

    head_timeout_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # the beginning of the next head may have come already, with the last request
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequestError(msg, code="invalid_http"))

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_timeout(self) -> None:
        self._head_timer = None
        if self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self._refuse(RequestTimeoutError())

    def _refuse(self, error: WeftError) -> None:
        """Answer without a request, and close."""
        response = error_response(error)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = dict(response.raw_headers) | {b"connection": b"close"}
            head = h11.Response(status_code=response.status_code, headers=list(headers.items()))
            events = (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()


def create_protocol(head_timeout_s: float) -> type[GuardedProtocol]:
    """The protocol class of a server; uvicorn makes its objects with arguments of its own."""
    return type("Protocol", (GuardedProtocol,), {"head_timeout_s": head_timeout_s})
