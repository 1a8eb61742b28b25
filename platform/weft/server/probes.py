"""A small server of its own for probes and metrics: it answers when the main event loop does not.

It runs in a thread, on a port that clients need not reach, and asks the main loop with a time
limit.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weft.gateway.probe_endpoints import METRICS_TYPE

# a main loop that has not come round for this long is taken for dead
LIVENESS_TIMEOUT_S = 10.0
_READINESS_TIMEOUT_S = 5.0
_METRICS_TIMEOUT_S = 10.0

ResultT = TypeVar("ResultT")


class Watched(Protocol):
    """What is asked; each runs in the main event loop."""

    @property
    def has_started(self) -> bool:
        """Whether it was ready once."""

    async def find_fault(self) -> str:
        """Why requests should go elsewhere, as a sentence; empty when they are welcome."""

    async def render_metrics(self) -> bytes:
        """Prometheus' text format."""


@dataclass(frozen=True, slots=True)
class _Probes:
    watched: Watched
    loop: asyncio.AbstractEventLoop

    async def livez(self, _request: Request) -> Response:
        async def turn() -> str:
            return ""

        return _answer(await self._fault_of(turn(), LIVENESS_TIMEOUT_S))

    async def startupz(self, _request: Request) -> Response:
        return _answer("" if self.watched.has_started else "The server is starting.")

    async def readyz(self, _request: Request) -> Response:
        return _answer(await self._fault_of(self.watched.find_fault(), _READINESS_TIMEOUT_S))

    async def metrics(self, _request: Request) -> Response:
        try:
            text = await self._ask(self.watched.render_metrics(), _METRICS_TIMEOUT_S)
        except TimeoutError:
            return _answer(f"No metrics within {_METRICS_TIMEOUT_S:.0f} s.")
        return Response(text, media_type=METRICS_TYPE)

    async def _fault_of(self, question: Coroutine[Any, Any, str], timeout_s: float) -> str:
        try:
            return await self._ask(question, timeout_s)
        except TimeoutError:
            return f"The event loop has not answered for {timeout_s:.0f} s."

    async def _ask(self, question: Coroutine[Any, Any, ResultT], timeout_s: float) -> ResultT:
        asked: concurrent.futures.Future[ResultT] = asyncio.run_coroutine_threadsafe(
            question, self.loop
        )
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(asked)


def _answer(fault: str) -> Response:
    if fault:
        return JSONResponse({"status": "not ready", "reason": fault}, 503)
    return JSONResponse({"status": "ok"})


def _create_app(probes: _Probes) -> Starlette:
    routes: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/livez": probes.livez,
        "/startupz": probes.startupz,
        "/readyz": probes.readyz,
        "/metrics": probes.metrics,
    }
    return Starlette(routes=[Route(path, handler) for path, handler in routes.items()])


@contextmanager
def probe_server(
    watched: Watched, sock: socket.socket, loop: asyncio.AbstractEventLoop
) -> Iterator[None]:
    """Answer on `sock` about what lives in `loop`. Called beside the loop or in it; leaving waits
    for answers under way, at most a second."""
    config = uvicorn.Config(
        _create_app(_Probes(watched, loop)),
        lifespan="off",
        server_header=False,
        access_log=False,
        log_level="warning",
        limit_concurrency=64,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([sock],), name="weft-probes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5)
