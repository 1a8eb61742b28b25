"""Sends a generation: as one JSON object or as server-sent events, watching for the client to go.

Both wait for the first output before the status goes out, so that an early failure is an honest
HTTP error; a stream waits at most one keep-alive interval for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from weft.errors import WeftError
from weft.gateway.faults import fault_of, slow_reader_error
from weft.gateway.generation import Generation
from weft.gateway.wire import AnswerFormat, Choice, Wire, encode, frame, total_usage
from weft.messages import EngineOutput

_SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """`keepalive_s` between comments while nothing comes, `stall_s` for one write."""

    keepalive_s: float
    stall_s: float


def _error_response(answer_format: AnswerFormat, error: WeftError) -> JSONResponse:
    status, wire = answer_format.error(error)
    return JSONResponse(wire, status, dict(error.headers))


@asynccontextmanager
async def _watched(generation: Generation, receive: Receive) -> AsyncIterator[None]:
    """Cancel the generation when the client goes, and when this block ends before it does."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        if not generation.is_over:
            generation.cancel()


class AnswerResponse(Response):
    """The whole answer as one object."""

    def __init__(
        self, generation: Generation, answer_format: AnswerFormat, headers: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._generation = generation
        self._format = answer_format
        self._extra = headers
        self.choices = [Choice() for _ in range(generation.num_choices)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._generation
        choices = self.choices
        fault: WeftError | None = None
        async with _watched(generation, receive):
            while not generation.is_over:
                for index, output in await generation.read(timeout_s=None):
                    choices[index].add(output)
                    fault = fault or fault_of(output)
        if generation.is_too_slow:
            fault = slow_reader_error()
        elif generation.is_cancelled:
            return  # nobody is there to read an answer
        if fault is not None:
            await _error_response(self._format, fault)(scope, receive, send)
            return
        usage = total_usage(generation.usages)
        headers = {**self._extra, **self._format.headers(usage)}
        body = encode(self._format.answer(choices, usage))
        raw_headers = [
            (b"content-length", str(len(body)).encode()),
            (b"content-type", b"application/json"),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": raw_headers})
        await send({"type": "http.response.body", "body": body})


class EventStream(Response):
    """The answer as server-sent events; `frame_event` makes those with text."""

    def __init__(
        self,
        generation: Generation,
        answer_format: AnswerFormat,
        headers: Mapping[str, str],
        *,
        include_usage: bool,
        limits: StreamLimits,
        frame_event: Callable[[Wire], bytes] = frame,
    ) -> None:
        super().__init__(headers={**headers, **_SSE_HEADERS})
        del self.headers["content-length"]
        self._generation = generation
        self._format = answer_format
        self._include_usage = include_usage
        self._limits = limits
        self._frame_event = frame_event
        self._has_failed = False
        self.choices = [Choice() for _ in range(generation.num_choices)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation, limits = self._generation, self._limits
        async with _watched(generation, receive):
            outputs = await generation.read(limits.keepalive_s)
            early = next((f for _, o in outputs if (f := fault_of(o)) is not None), None)
            if early is not None:
                await _error_response(self._format, early)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            opening = self._format.opening(generation.num_choices)
            body = b"".join(self._frame(wire) for wire in opening)
            try:
                await self._send_all(body, outputs, send)
            except TimeoutError:
                generation.cancel()  # a write did not end in time: the client has stopped reading

    async def _send_all(
        self, opening: bytes, outputs: list[tuple[int, EngineOutput]], send: Send
    ) -> None:
        generation = self._generation
        body = opening + self._frames(outputs)
        while not generation.is_over:
            await self._send(send, body or b": ping\n\n")
            outputs = await generation.read(self._limits.keepalive_s)
            if generation.is_over and not outputs:
                body = b""
                break
            body = self._frames(outputs)
        await self._send(send, body + self._ending(), more=False)

    def _frames(self, outputs: list[tuple[int, EngineOutput]]) -> bytes:
        """One write for all that has come; a token that completes no character shows nothing but
        its log-probability."""
        body = b""
        for index, output in outputs:
            choice = self.choices[index]
            choice.finish_reason = output.finish_reason
            fault = fault_of(output)
            if fault is not None:
                body += b"" if self._has_failed else self._error(fault)
                self._has_failed = True
            elif output.text or output.logprobs or output.finish_reason is not None:
                body += b"".join(map(self._frame, self._format.chunks(index, choice, output)))
        return body

    def _ending(self) -> bytes:
        if self._generation.is_too_slow:
            return self._error(slow_reader_error())
        if any(choice.finish_reason not in ("stop", "length") for choice in self.choices):
            return b""  # the error was the last word
        ending = b""
        if self._include_usage:
            ending = frame(self._format.usage_chunk(total_usage(self._generation.usages)))
        return ending + self._format.done

    def _error(self, error: WeftError) -> bytes:
        return frame(self._format.error(error)[1])

    def _frame(self, wire: Wire) -> bytes:
        return self._frame_event({**wire, "usage": None} if self._include_usage else wire)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self._limits.stall_s):
            await send({"type": "http.response.body", "body": body, "more_body": more})
