"""The engine's side of the socket: any `EngineClient` is offered to other processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

from weft.ipc.frames import FrameError, FrameReader, FrameWriter
from weft.ipc.protocol import (
    PROTOCOL,
    Abort,
    AskPlacements,
    AskStats,
    ClientMessage,
    Discard,
    Done,
    Generate,
    Hello,
    Output,
    Pin,
    Placements,
    Prefetch,
    PrepareGrammar,
    Stats,
    Status,
    Unload,
    Welcome,
    refusal_of,
)
from weft.messages import EngineClient, EngineOutput, Usage

logger = logging.getLogger("weft.ipc")

STATUS_INTERVAL_S = 1.0
# a client that is alive reads within this time, however busy it is
STALL_TIMEOUT_S = 30.0
# for requests to be aborted when the socket closes; an engine that hangs is not waited for
_CLOSE_S = 5.0


@asynccontextmanager
async def engine_socket(
    engine: EngineClient, path: Path, *, stall_timeout_s: float = STALL_TIMEOUT_S
) -> AsyncIterator[None]:
    """Offer `engine` at `path`, to processes of this user only. OSError where it cannot be bound.

    Connections that are open at the end are closed, and their requests aborted.
    """
    clients: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a callback of asyncio's server is a task"
        clients.add(task)
        try:
            if _is_ours(writer):
                await _Client(engine, reader, writer, stall_timeout_s).serve()
        finally:
            clients.discard(task)
            writer.close()

    server = await asyncio.start_unix_server(accept, sock=_bind(path))
    try:
        yield
    finally:
        server.close()
        for task in clients:
            task.cancel()
        if clients:
            await asyncio.wait(clients, timeout=_CLOSE_S)
        path.unlink(missing_ok=True)


def _bind(path: Path) -> socket.socket:
    """A socket that nobody can connect to before its mode is set: it does not listen yet."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
    except OSError:
        sock.close()
        raise
    return sock


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Whether the peer runs as this user; the socket's mode says the same, where it is kept."""
    option = getattr(socket, "SO_PEERCRED", None)  # Linux has it
    if option is None:
        return True
    sock = writer.get_extra_info("socket")
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, option, 12))
    return bool(uid == os.geteuid())


class _Client:
    """One connection. Calls are taken one after another, and may be answered in any order."""

    def __init__(
        self,
        engine: EngineClient,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stall_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._reader: FrameReader[ClientMessage] = FrameReader(reader, ClientMessage)
        self._writer = FrameWriter(writer, stall_timeout_s)
        self._running: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_gone = False

    async def serve(self) -> None:
        """To the connection's end; then its requests are aborted."""
        status = asyncio.create_task(self._send_status())
        try:
            if await self._greet():
                async for message in self._reader:
                    await self._take(message)
        except FrameError as error:
            logger.error("a worker's connection is closed: %s", error)
        finally:
            self._is_gone = True
            status.cancel()
            for request_id in self._running:
                self._engine.abort(request_id)
            await self._writer.close()
            # streams are read to their ends, so that the engine's queues empty
            await asyncio.gather(status, *self._tasks, return_exceptions=True)

    async def _greet(self) -> bool:
        hello = await self._reader.read()
        self._writer.send(Hello(PROTOCOL))
        if not isinstance(hello, Hello) or hello.protocol != PROTOCOL:
            logger.error("a worker of another release has asked for the engine")
            return False
        self._writer.send(Welcome(self._engine.info, self._engine.not_ready_reason))
        return True

    async def _send_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_INTERVAL_S)
            with contextlib.suppress(ConnectionError):  # the reading side hears of it, too
                self._writer.send(Status(self._engine.not_ready_reason))
                await self._writer.drained()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, message: ClientMessage) -> None:
        match message:
            case Generate():
                await self._generate(message)
            case Abort(request_id):
                if request_id in self._running:
                    self._engine.abort(request_id)
            case Prefetch(digest):
                self._engine.prefetch_adapter(digest)
            case Hello():
                raise FrameError("It has greeted twice.")
            case _:
                self._spawn(self._answer(message))

    async def _generate(self, message: Generate) -> None:
        """Admit before the next message is taken: that may be the request's abort."""
        request_id = message.request.request_id
        try:
            stream = await self._engine.generate(message.request)
        except Exception as error:
            self._refuse(message.call, error)
            return
        self._running.add(request_id)
        self._writer.send(Done(message.call))
        self._spawn(self._forward(request_id, stream))

    async def _forward(self, request_id: str, stream: AsyncIterator[EngineOutput]) -> None:
        """Each output to the client, and one that ends the request in any case."""
        last = EngineOutput(request_id, "", (), Usage(0, 0))
        error = "The engine went away."
        try:
            async for output in stream:
                last = output
                await self._send_output(output)
        except Exception as caught:
            logger.exception("%s: the engine's stream failed", request_id)
            error = str(caught)
        finally:
            self._running.discard(request_id)
        if not last.is_last:
            await self._send_output(
                EngineOutput(request_id, "", (), last.usage, "error", error, is_last=True)
            )

    async def _send_output(self, output: EngineOutput) -> None:
        if self._is_gone:
            return
        try:
            self._writer.send(Output(output))
            await self._writer.drained()
        except ConnectionError:  # the reading side hears of it, too, and aborts
            self._is_gone = True

    async def _answer(
        self, message: PrepareGrammar | AskStats | AskPlacements | Unload | Discard | Pin
    ) -> None:
        try:
            self._writer.send(await self._call(message))
        except Exception as error:
            self._refuse(message.call, error)

    def _refuse(self, call: int, error: Exception) -> None:
        refused = refusal_of(call, error)
        if refused.kind == "failed":
            logger.error("a worker's call failed", exc_info=error)
        self._writer.send(refused)

    async def _call(
        self, message: PrepareGrammar | AskStats | AskPlacements | Unload | Discard | Pin
    ) -> Done | Stats | Placements:
        match message:
            case PrepareGrammar(_, grammar):
                await self._engine.prepare_grammar(grammar)
            case AskStats(call, drain):
                return Stats(call, await self._engine.stats(drain=drain))
            case AskPlacements(call, digest):
                return Placements(call, tuple(await self._engine.placements(digest)))
            case Unload(_, digest):
                await self._engine.unload_adapter(digest)
            case Discard(_, digest):
                await self._engine.discard_adapter(digest)
            case Pin(_, digests):
                await self._engine.pin_adapters(digests)
        return Done(message.call)
