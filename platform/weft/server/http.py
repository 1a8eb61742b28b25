"""Runs an application: as this process, draining on SIGTERM, or in a thread on a free port.

Knows uvicorn and the gateway's `drain`; builds nothing itself.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from weft.db.database import Database
from weft.gateway.http_protocol import MAX_HEAD_BYTES, create_protocol
from weft.gateway.readiness import find_fault
from weft.gateway.runtime import Gateway
from weft.server.probes import probe_server
from weft.settings import ServerSettings

# after draining nothing runs any more; this only lets the last bytes out
_CLOSE_S = 5


def _config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        lifespan="on",
        http=create_protocol(settings.head_timeout_s),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        server_header=False,
        # uvicorn's own believes whatever comes over the loopback; `gateway.proxies` is for this
        proxy_headers=False,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_CLOSE_S,
    )


def keep_startup_from_collector() -> None:
    """What the start has made lives as long as the process, and would be looked at by every full
    collection of garbage: a pause of 200 ms, which comes with one large answer in fifty."""
    gc.collect()
    gc.freeze()


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT drains and ends with exit code 0, a second one ends at once."""

    def __init__(
        self,
        app: FastAPI,
        settings: ServerSettings,
        probe_socket: socket.socket | None = None,
    ) -> None:
        super().__init__(_config(app, settings))
        self._gateway: Gateway = app.state.gateway
        self._database: Database = app.state.database
        self._deadline_s = settings.drain_deadline_s
        self._probe_socket = probe_socket
        self.has_started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            if self._probe_socket is not None:
                stack.enter_context(probe_server(self, self._probe_socket, self._loop))
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        keep_startup_from_collector()

    async def find_fault(self) -> str:
        if not self.started:
            return "The server is starting."
        fault = await find_fault(self._gateway, self._database)
        self.has_started = self.has_started or not fault
        return fault

    async def render_metrics(self) -> bytes:
        return self._gateway.metrics.render() + await self._gateway.engine_metrics.render()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain is not None or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        if self._drain is None:
            self._drain = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            await self._gateway.drain(self._deadline_s)
        finally:
            self.should_exit = True


def run_server(app: FastAPI, settings: ServerSettings) -> None:
    """Serve in this process until a signal; OSError when the address is taken."""
    with ExitStack() as stack:
        sock = stack.enter_context(bind(settings.host, settings.port))
        probe_socket = None
        if settings.probes_at is not None:
            probe_socket = stack.enter_context(bind(*settings.probes_at, option="--probe"))
        server = DrainingServer(app, settings, probe_socket)
        server.run(sockets=[sock])
    if not server.started:
        raise RuntimeError("The server could not start; the log above says why.")


@contextmanager
def background_server(app: FastAPI, settings: ServerSettings) -> Iterator[str]:
    """Serve in a thread; gives `http://host:port`. Port 0 in the settings takes a free one."""
    with bind(settings.host, settings.port) as sock:
        server = uvicorn.Server(_config(app, settings))
        thread = threading.Thread(target=server.run, args=([sock],), name="weft-gateway")
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("The server could not start; the log above says why.")
                thread.join(0.005)
            yield f"http://{settings.host}:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def check_address(host: str, port: int, option: str = "-") -> None:
    """OSError, as a sentence, when the address cannot be listened on; asked before slow work."""
    bind(host, port, option=option).close()


def bind(host: str, port: int, *, is_shared: bool = False, option: str = "-") -> socket.socket:
    """A socket on the address. A shared one lets others of this user bind there, too: the kernel
    spreads connections over those of them that listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP, or asyncio leaves Nagle's algorithm on: 40 ms for every answer
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
        raise OSError(
            f"{host}:{port} {reason}; choose another with {option}-host or {option}-port"
        ) from error
    return sock
