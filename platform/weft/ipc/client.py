"""A worker's side of the socket: an `EngineClient` whose engine runs in another process.

While the engine cannot be reached its clients say so, and connect again when it is back. One event
loop uses a client: that in which it was connected.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from weft.ipc.calls import Calls
from weft.ipc.frames import FrameError, Message
from weft.ipc.link import SILENCE_S, EngineMismatchError, Link, greet
from weft.ipc.protocol import (
    Abort,
    AskPlacements,
    AskStats,
    Discard,
    Done,
    EngineMessage,
    Generate,
    Hello,
    Output,
    Pin,
    Placements,
    Prefetch,
    PrepareGrammar,
    Refused,
    Stats,
    Status,
    Unload,
    Welcome,
    error_of,
)
from weft.messages import (
    AdapterPlacement,
    EngineDeadError,
    EngineDrainingError,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    EngineStats,
    Grammar,
    Usage,
)

logger = logging.getLogger("weft.ipc")

LOST = "The engine stopped while it ran this request."
AWAY = "The engine's process cannot be reached."
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 1.0

AnswerT = TypeVar("AnswerT", bound=Message)


@dataclass(slots=True)
class _Stream:
    """What came for one request; `usage` is what its reader was or will be told last."""

    outputs: asyncio.Queue[EngineOutput] = field(default_factory=asyncio.Queue)
    usage: Usage = Usage(0, 0)

    def put(self, output: EngineOutput) -> None:
        self.usage = output.usage
        self.outputs.put_nowait(output)


class RemoteEngine:
    """An `EngineClient` (see `weft.messages`). Made by `connect`, ended by `close`."""

    def __init__(self, path: Path, link: Link) -> None:
        self._path = path
        self._info = link.welcome.info
        self._link: Link | None = link
        self._reason = link.welcome.not_ready_reason
        self._heard_s = time.monotonic()
        self._is_draining = False
        self._streams: dict[str, _Stream] = {}
        self._calls = Calls()
        self._pinned: tuple[str, ...] | None = None
        self._task = asyncio.create_task(self._run(link), name="weft-engine-client")

    @classmethod
    async def connect(cls, path: Path, timeout_s: float) -> RemoteEngine:
        """Wait for the engine that is to be at `path`; TimeoutError when none comes."""
        pause_s = _FIRST_RETRY_S
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return cls(path, await greet(path))
                except OSError:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LAST_RETRY_S)

    async def close(self) -> None:
        """Leave; the engine aborts what still runs for this client."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # ---- EngineClient ----

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def is_ready(self) -> bool:
        return not self.not_ready_reason

    @property
    def not_ready_reason(self) -> str:
        if self._is_draining:
            return "The engine is draining."
        if self._link is not None and time.monotonic() - self._heard_s > SILENCE_S:
            return f"Nothing was heard of the engine for {SILENCE_S:.0f} s."
        return self._reason

    async def prepare_grammar(self, grammar: Grammar) -> None:
        await self._call(lambda call: PrepareGrammar(call, grammar), Done)

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        if self._is_draining:
            raise EngineDrainingError("The engine is draining.")
        if req.request_id in self._streams:
            raise ValueError(f"Request id {req.request_id} is already in use.")
        stream = self._streams[req.request_id] = _Stream()
        try:
            await self._call(lambda call: Generate(call, req), Done)
        except BaseException as error:
            self._streams.pop(req.request_id, None)
            if isinstance(error, asyncio.CancelledError):
                self.abort(req.request_id)  # it may have been admitted; nobody reads it
            raise
        return self._outputs(stream)

    @staticmethod
    async def _outputs(stream: _Stream) -> AsyncIterator[EngineOutput]:
        while True:
            output = await stream.outputs.get()
            yield output
            if output.is_last:
                return

    def abort(self, request_id: str) -> None:
        self._tell(Abort(request_id))

    async def stats(self, *, drain: bool = False) -> EngineStats:
        return (await self._call(lambda call: AskStats(call, drain), Stats)).stats

    async def placements(self, adapter_digest: str | None = None) -> Sequence[AdapterPlacement]:
        told = await self._call(lambda call: AskPlacements(call, adapter_digest), Placements)
        return told.placements

    async def unload_adapter(self, adapter_digest: str) -> None:
        await self._call(lambda call: Unload(call, adapter_digest), Done)

    def prefetch_adapter(self, adapter_digest: str) -> None:
        self._tell(Prefetch(adapter_digest))

    async def discard_adapter(self, adapter_digest: str) -> None:
        await self._call(lambda call: Discard(call, adapter_digest), Done)

    async def pin_adapters(self, adapter_digests: Collection[str]) -> None:
        pinned = self._pinned = tuple(sorted(adapter_digests))
        await self._call(lambda call: Pin(call, pinned), Done)

    async def drain(self, deadline_s: float) -> None:
        """Of this client alone: the engine goes on for others."""
        self._is_draining = True
        end = time.monotonic() + deadline_s
        while self._streams and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for request_id in list(self._streams):
            self.abort(request_id)
        # an abort takes a step; an engine that hangs is not waited for
        end = time.monotonic() + SILENCE_S
        while self._streams and time.monotonic() < end:
            await asyncio.sleep(0.005)

    # ---- the connection ----

    def _tell(self, message: Message) -> None:
        """A hint. An engine that is away needs none: a connection's requests end with it."""
        if self._link is not None:
            self._link.writer.send(message)

    async def _call(self, create: Callable[[int], Message], kind: type[AnswerT]) -> AnswerT:
        if self._link is None:
            raise EngineDeadError(self._reason)
        told = await self._calls.ask(create, self._link.writer.send)
        if isinstance(told, Refused):
            raise error_of(told)
        assert isinstance(told, kind), "a call has one kind of answer"
        return told

    async def _run(self, link: Link | None) -> None:
        """Read until closed; connect again whenever the engine goes."""
        while True:
            if link is not None:
                await self._read(link)
            await asyncio.sleep(_FIRST_RETRY_S)
            link = await self._connect_again()

    async def _connect_again(self) -> Link | None:
        """None while the engine is away, or is not the one that this client knows."""
        try:
            link = await greet(self._path)
        except OSError:
            await asyncio.sleep(_LAST_RETRY_S / 4)
            return None
        except (EngineMismatchError, FrameError) as error:
            self._reason = str(error)
            await asyncio.sleep(_LAST_RETRY_S)
            return None
        if link.welcome.info.base_digest != self._info.base_digest:
            self._reason = "The engine has come back with another base: restart the server."
            await link.writer.close()
            await asyncio.sleep(_LAST_RETRY_S)
            return None
        logger.warning("connected to the engine again")
        self._info, self._link = link.welcome.info, link
        self._reason, self._heard_s = link.welcome.not_ready_reason, time.monotonic()
        if self._pinned is not None:  # a new engine has no pins
            link.writer.send(Pin(self._calls.next_number(), self._pinned))
        return link

    async def _read(self, link: Link) -> None:
        """Hand out what comes, to the connection's end; then end all that waits for more."""
        try:
            async for message in link.reader:
                self._take(message)
        except FrameError as error:
            logger.error("the engine's connection is closed: %s", error)
        finally:
            self._link, self._reason = None, AWAY
            self._end_all()
            await link.writer.close()

    def _take(self, message: EngineMessage) -> None:
        self._heard_s = time.monotonic()
        match message:
            case Output(output):
                stream = self._streams.get(output.request_id)
                if stream is not None:  # else its caller was cancelled
                    stream.put(output)
                    if output.is_last:
                        del self._streams[output.request_id]
            case Status(reason):
                self._reason = reason
            case Done() | Stats() | Placements() | Refused():
                self._calls.answered(message.call, message)
            case Hello() | Welcome():
                raise FrameError("The engine has greeted twice.")

    def _end_all(self) -> None:
        self._calls.fail_all(EngineDeadError(AWAY))
        streams, self._streams = self._streams, {}
        for request_id, stream in streams.items():
            stream.put(
                EngineOutput(
                    request_id, "", (), stream.usage, "error", LOST, "engine_failed", is_last=True
                )
            )
