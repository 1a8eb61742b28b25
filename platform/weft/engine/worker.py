"""The engine's thread, and the in-process `EngineClient` that the gateway holds.

The thread owns the engine; callers leave commands in an inbox and get outputs on their own event
loop. Nothing here waits for a reader: a request's outputs are bounded by its `max_tokens`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from weft.engine.build import BuiltEngine, warm_up
from weft.engine.config import EngineConfig
from weft.engine.snapshot import list_placements, take_stats
from weft.messages import (
    AdapterPlacement,
    EngineDeadError,
    EngineDrainingError,
    EngineInfo,
    EngineOutput,
    EngineQueueFullError,
    EngineRequest,
    EngineStats,
    ErrorCode,
    FinishReason,
    Grammar,
    Usage,
)

# what callers read; the reason is for the log and for whoever watches readiness
DEAD = "The engine stopped while it ran this request."


@dataclass(slots=True)
class _Stream:
    """Where one request's outputs go: a queue that belongs to the caller's event loop.

    `usage` is what the caller was told last.
    """

    request: EngineRequest
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[EngineOutput]
    usage: Usage = Usage(0, 0)

    def put(self, output: EngineOutput) -> None:
        self.usage = output.usage
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self.loop.call_soon_threadsafe(self.outputs.put_nowait, output)


class InProcessEngine:
    """An `EngineClient` (see `weft.messages`) over an engine in a thread of this process."""

    def __init__(self, config: EngineConfig, built: BuiltEngine) -> None:
        self._config, self._built, self._engine = config, built, built.engine
        self._streams: dict[str, _Stream] = {}
        self._wake = threading.Condition()
        self._new: list[_Stream] = []
        self._aborts: list[_Stream] = []
        self._stopping = False
        self._draining = False
        self._warm = False
        self._failure: str | None = None
        self._pinned: frozenset[str] = frozenset()
        self._pinning = threading.Lock()
        self._step_started_s: float | None = None
        self._thread = threading.current_thread()

    def start(self) -> None:
        """Run the engine in a thread of its own; where it was built in one, call `run` there."""
        self._thread = threading.Thread(target=self.run, name="weft-engine", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have the thread look again, for example because an adapter has arrived."""
        with self._wake:
            self._wake.notify()

    # ---- EngineClient, called from any thread ----

    @property
    def info(self) -> EngineInfo:
        return self._built.info

    @property
    def is_ready(self) -> bool:
        return not self.not_ready_reason

    @property
    def not_ready_reason(self) -> str:
        started = self._step_started_s
        if self._failure is not None:
            return f"The engine has stopped: {self._failure}"
        if self._draining or self._stopping:
            return "The engine is draining."
        if not self._warm:
            return "The engine is warming up."
        if started is not None and time.monotonic() - started > self._config.step_timeout_s:
            return f"A step has been running for over {self._config.step_timeout_s:.0f} s."
        return ""

    @property
    def failure(self) -> str | None:
        """What ended the engine's thread, if a fault did."""
        return self._failure

    async def prepare_grammar(self, grammar: Grammar) -> None:
        await self._engine.grammars.prepare(grammar)

    async def generate(self, req: EngineRequest) -> AsyncIterator[EngineOutput]:
        self._engine.check(req)
        stream = _Stream(req, asyncio.get_running_loop(), asyncio.Queue())
        with self._wake:
            if self._failure is not None:
                raise EngineDeadError(self._failure)
            if self._draining or self._stopping:
                raise EngineDrainingError("The engine is draining.")
            if req.request_id in self._streams:
                raise ValueError(f"Request id {req.request_id} is already in use.")
            num_waiting = self._num_waiting
            if num_waiting >= self._config.max_waiting:
                raise EngineQueueFullError(num_waiting)
            self._streams[req.request_id] = stream
            self._new.append(stream)
            self._wake.notify()
        return self._outputs(stream)

    @property
    def _num_waiting(self) -> int:
        """Requests that are neither running nor finished."""
        running = {req.request_id for req in list(self._engine.scheduler.running)}
        return len(self._streams) - len(running)

    @staticmethod
    async def _outputs(stream: _Stream) -> AsyncIterator[EngineOutput]:
        while True:
            output = await stream.outputs.get()
            yield output
            if output.is_last:
                return

    def abort(self, request_id: str) -> None:
        with self._wake:
            stream = self._streams.get(request_id)
            if stream is not None:
                self._aborts.append(stream)
                self._wake.notify()

    def prefetch_adapter(self, adapter_digest: str) -> None:
        self._built.tiers.request(adapter_digest)

    def snapshot(self, *, drain: bool = False) -> EngineStats:
        """`stats`, from any thread."""
        return take_stats(self._built, max(0, self._num_waiting), drain=drain)

    async def stats(self, *, drain: bool = False) -> EngineStats:
        return self.snapshot(drain=drain)

    # the tiers' lock is held while files are looked at: not on the caller's event loop

    async def placements(self, adapter_digest: str | None = None) -> Sequence[AdapterPlacement]:
        return await asyncio.to_thread(list_placements, self._built.tiers, adapter_digest)

    async def unload_adapter(self, adapter_digest: str) -> None:
        await asyncio.to_thread(self._built.tiers.unload, adapter_digest)

    async def discard_adapter(self, adapter_digest: str) -> None:
        await asyncio.to_thread(self._built.tiers.discard, adapter_digest)

    async def pin_adapters(self, adapter_digests: Collection[str]) -> None:
        await asyncio.to_thread(self._pin, frozenset(adapter_digests))

    def _pin(self, wanted: frozenset[str]) -> None:
        with self._pinning:
            for digest in sorted(self._pinned - wanted):
                self._built.tiers.pin(digest, False)
            for digest in sorted(wanted - self._pinned):
                self._built.tiers.pin(digest, True)
            self._pinned = wanted

    async def drain(self, deadline_s: float) -> None:
        with self._wake:
            self._draining = True
        end = time.monotonic() + deadline_s
        while self._streams and self._failure is None and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for request_id in list(self._streams):
            self.abort(request_id)
        # an abort takes a step; one that hangs is not waited for beyond the watchdog's limit
        end = time.monotonic() + self._config.step_timeout_s
        while self._streams and self._failure is None and time.monotonic() < end:
            await asyncio.sleep(0.005)

    def close(self) -> None:
        """Stop the thread after its current step; what still runs is aborted."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not threading.current_thread():  # it was never started
            # a step that hangs is not waited for: the thread ends with the process
            self._thread.join(timeout=self._config.step_timeout_s)
        self._built.tiers.close()
        self._engine.grammars.close()

    # ---- the engine's thread ----

    def run(self) -> None:
        """Be the engine's thread; returns when the engine is closed."""
        try:
            warm_up(self._engine)
            self._warm = True
            while self._take_commands():
                self._step_started_s = time.monotonic()
                outputs = self._engine.step()
                self._step_started_s = None
                for output in outputs:
                    self._deliver(output)
                if self._engine.is_stalled:
                    self._wait_for_adapters()
            for request_id in list(self._streams):
                for output in self._engine.abort(request_id):
                    self._deliver(output)
                self._end(request_id, "abort", None, None)
            self._engine.settle()  # nothing that the device still reads is given up
        except Exception as error:  # the thread's last line: everybody waiting must hear of it
            with self._wake:  # whoever comes later is refused
                self._failure = f"{type(error).__name__}: {error}"
            for request_id in list(self._streams):
                self._end(request_id, "error", DEAD, "engine_failed")
            raise

    def _take_commands(self) -> bool:
        """Wait for work; False when the thread should end."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._stopping or self._new or self._aborts or self._engine.has_work
            )
            new, self._new = self._new, []
            aborts, self._aborts = self._aborts, []
            if self._stopping:
                return False
        for stream in new:
            self._engine.add(stream.request)
        for stream in aborts:
            request_id = stream.request.request_id
            # it may have ended meanwhile, and another may go by its id
            if self._streams.get(request_id) is stream:
                for output in self._engine.abort(request_id):
                    self._deliver(output)
        return True

    def _wait_for_adapters(self) -> None:
        """All that waits waits for an adapter: sleep until one arrives or something else comes."""
        with self._wake:
            if not (self._new or self._aborts or self._stopping):
                self._wake.wait(timeout=0.05)

    def _deliver(self, output: EngineOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return
        if output.is_last:
            with self._wake:
                del self._streams[output.request_id]
        stream.put(output)

    def _end(
        self, request_id: str, reason: FinishReason, error: str | None, code: ErrorCode | None
    ) -> None:
        """Deliver a last output without text, unless the engine has given one."""
        stream = self._streams.get(request_id)
        if stream is not None:
            usage = stream.usage
            self._deliver(
                EngineOutput(request_id, "", (), usage, reason, error, code, is_last=True)
            )
