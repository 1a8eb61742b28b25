"""Processes that a supervisor starts, listens to, starts again when they end, and ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from weft.ipc.calls import Calls
from weft.ipc.frames import FrameError, FrameReader, FrameWriter, Message
from weft.server.control import ChildMessage, Failed, Fault, Handover, Metrics, Started, open_end

logger = logging.getLogger("weft.server")

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 30.0
# one that has lived this long ended for a new reason
_SETTLED_S = 60.0

AnswerT = TypeVar("AnswerT", Fault, Metrics)


class ChildFailedError(RuntimeError):
    """A process could not start; `str(error)` is what it said."""


class Child:
    """One process, from its start to its end. Made by `start`."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        reader: FrameReader[ChildMessage],
        writer: FrameWriter,
        on_message: Callable[[Message], None],
    ) -> None:
        self.name, self.process = name, process
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader, self._writer, self._on_message = reader, writer, on_message
        self._calls = Calls()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, name: str, module: str, handover: Handover, on_message: Callable[[Message], None]
    ) -> Child:
        """Run `python -m module` with a pair of sockets as its standard input.

        In a session of its own: a Ctrl-C in the terminal is the supervisor's to pass on.
        """
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, stdin=theirs.fileno(), start_new_session=True
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await open_end(ours, ChildMessage)
        writer.send(handover)
        return cls(name, process, reader, writer, on_message)

    async def ask(self, create: Callable[[int], Message], kind: type[AnswerT]) -> AnswerT:
        """ConnectionError when it ends before it answers."""
        if self._reading.done():
            raise ConnectionResetError(f"{self.name} has ended.")
        told = await self._calls.ask(create, self._writer.send)
        assert isinstance(told, kind), "a question has one kind of answer"
        return told

    def signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def wait(self) -> int:
        """Its exit status, when all that it said was heard."""
        await self._reading
        return await self.process.wait()

    async def _read(self) -> None:
        try:
            async for message in self._reader:
                self._take(message)
        except FrameError as error:
            logger.error("%s is ended: %s", self.name, error)
            self.signal(signal.SIGKILL)
        finally:
            self._calls.fail_all(ConnectionResetError(f"{self.name} has ended."))
            await self._writer.close()

    def _take(self, message: ChildMessage) -> None:
        match message:
            case Fault() | Metrics():
                self._calls.answered(message.call, message)
            case Started():
                if not self.started.done():
                    self.started.set_result(None)
            case _:
                self._on_message(message)


class Keeper:
    """Keeps a process running until it is stopped."""

    def __init__(
        self,
        name: str,
        module: str,
        handover: Handover,
        on_message: Callable[[Message], None] = lambda message: None,
        on_end: Callable[[Child], None] = lambda child: None,
    ) -> None:
        self.name = name
        self._module, self._handover = module, handover
        self._on_message, self._on_end = on_message, on_end
        self.child: Child | None = None
        self.first_started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure = ""
        self._is_stopping = False
        self._task = asyncio.create_task(self._keep(), name=f"keep-{name}")

    @property
    def running(self) -> Child | None:
        """The process, once it does its work."""
        child = self.child
        return child if child is not None and child.started.done() else None

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._is_stopping:
            began_s = time.monotonic()
            status = await self._run_once()
            if self._is_stopping:
                return
            if not self.first_started.done():
                told = self._failure or f"{self.name} ended with status {status}."
                self.first_started.set_exception(ChildFailedError(told))
                return
            if time.monotonic() - began_s > _SETTLED_S:
                pause_s = _FIRST_PAUSE_S
            logger.error(
                "%s has ended with status %d; it is started again in %.1f s",
                self.name, status, pause_s,
            )  # fmt: skip
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    async def _run_once(self) -> int:
        child = await Child.start(self.name, self._module, self._handover, self._heard)
        self.child = child
        if self._is_stopping:  # it was asked to stop while it was being started
            child.signal(signal.SIGKILL)
        child.started.add_done_callback(self._started)
        try:
            return await child.wait()
        finally:
            child.started.cancel()
            self.child = None
            self._on_end(child)

    def _started(self, started: asyncio.Future[None]) -> None:
        if not started.cancelled() and not self.first_started.done():
            self.first_started.set_result(None)

    def _heard(self, message: Message) -> None:
        if isinstance(message, Failed):
            self._failure = message.message
            logger.error("%s: %s", self.name, message.message)
        else:
            self._on_message(message)

    async def stop(self, deadline_s: float) -> None:
        """SIGTERM, and SIGKILL to what has not ended after `deadline_s`. Idempotent."""
        self._is_stopping = True
        self.first_started.cancel()
        if self.child is None:  # between two, or being started: the latter ends itself
            await asyncio.wait({self._task}, timeout=0.05)
        if self.child is not None:
            self.child.signal(signal.SIGTERM)
        _, late = await asyncio.wait({self._task}, timeout=deadline_s)
        if late and self.child is not None:
            logger.error("%s has not ended in %.0f s and is killed", self.name, deadline_s)
            self.kill()
            await asyncio.wait({self._task}, timeout=_LAST_PAUSE_S)
        self._task.cancel()

    def kill(self) -> None:
        self._is_stopping = True
        if self.child is not None:
            self.child.signal(signal.SIGKILL)
