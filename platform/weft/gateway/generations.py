"""All generations of an app: admitted together, each pumped by a task, waited for at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence

from weft.errors import InvalidRequestError, OverloadedError, WeftError
from weft.gateway.faults import draining_error
from weft.gateway.generation import Generation, Job
from weft.gateway.metrics import GatewayMetrics
from weft.limits.admission import Admission
from weft.messages import (
    EngineClient,
    EngineDeadError,
    EngineDrainingError,
    EngineOutput,
    EngineQueueFullError,
)
from weft.usage.service import MeteredRequest, UsageRecorder

logger = logging.getLogger("weft.gateway")

# how long an engine has to answer an abort when the app closes
_CLOSE_S = 10.0
# pauses between attempts to write usage while the database refuses
_FIRST_RETRY_S, _LAST_RETRY_S = 0.25, 30.0


class Generations:
    """Starts generations, and waits for their ends at shutdown."""

    def __init__(
        self,
        engine: EngineClient,
        recorder: UsageRecorder,
        admission: Admission,
        metrics: GatewayMetrics,
        max_backlog_bytes: int,
    ) -> None:
        self.engine = engine
        self.recorder = recorder
        self.admission = admission
        self.metrics = metrics
        self.max_backlog_bytes = max_backlog_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: set[Generation] = set()

    async def start(self, jobs: Sequence[Job], headers: Mapping[str, str]) -> Generation:
        """Write ahead, then admit all or none; a WeftError says why not.

        The jobs have their places, and whatever comes of them gives these back. `headers` tell the
        reader what is left.
        """
        try:
            await self.recorder.begin([job.metered for job in jobs])
        except BaseException:  # cancelled, too
            await self._give_back(jobs)
            raise
        generation = Generation(self, jobs, headers)
        streams: list[AsyncIterator[EngineOutput]] = []
        try:
            for job in jobs:
                streams.append(await self.engine.generate(job.request))
        except BaseException as error:  # cancelled, too
            # those already in the engine are stopped and metered like any other
            generation.num_open = len(streams)
            self._pump(generation, streams)
            generation.cancel()
            await self._give_back(jobs[len(streams) :])
            await self._forget([job.metered for job in jobs[len(streams) :]])
            refusal = _refusal(error)
            if refusal is None:
                raise
            raise refusal from error
        self._pump(generation, streams)
        return generation

    def _pump(self, generation: Generation, streams: list[AsyncIterator[EngineOutput]]) -> None:
        for index, stream in enumerate(streams):
            self._spawn(self._run(generation, index, stream))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(
        self, generation: Generation, index: int, stream: AsyncIterator[EngineOutput]
    ) -> None:
        self._running.add(generation)
        try:
            await generation.pump(index, stream)
        finally:
            if generation.num_open == 0:
                self._running.discard(generation)

    async def _give_back(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            await self.admission.cancel(job.request.request_id)

    async def _forget(self, refused: Sequence[MeteredRequest]) -> None:
        async def write() -> None:
            await self.recorder.forget(refused)

        if not await self.try_write(write):
            self._spawn(self.write_later(write))

    async def try_write(self, write: Callable[[], Awaitable[None]]) -> bool:
        """False when usage could not be written; whatever the reason, a request must go on."""
        try:
            await write()
        except Exception:
            logger.exception("usage could not be written; it is tried again")
            self.metrics.usage_write_failed()
            return False
        return True

    async def write_later(self, write: Callable[[], Awaitable[None]]) -> None:
        """Try until it is written. Ended by `close`, the pending row stays: it becomes "lost" at
        the next start, never billed twice."""
        pause_s = _FIRST_RETRY_S
        await asyncio.sleep(pause_s)
        while not await self.try_write(write):
            pause_s = min(2 * pause_s, _LAST_RETRY_S)
            await asyncio.sleep(pause_s)

    @property
    def num_active(self) -> int:
        return len(self._tasks)

    async def join(self) -> None:
        """Wait until every generation is over and metered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End every generation; an engine that does not answer in time leaves `lost` rows."""
        for generation in list(self._running):
            generation.cancel()
        if self._tasks:
            _, stuck = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
            for task in stuck:
                task.cancel()


def _refusal(error: BaseException) -> WeftError | None:
    """The engine's refusal in the caller's words."""
    if isinstance(error, EngineQueueFullError):
        return OverloadedError("The server is overloaded; try again shortly.", retry_after_s=1)
    if isinstance(error, EngineDrainingError):
        return draining_error()
    if isinstance(error, EngineDeadError):
        return OverloadedError(
            "The engine has stopped; the operator must restart the server.",
            retry_after_s=30,
            code="engine_stopped",
        )
    return InvalidRequestError(str(error)) if isinstance(error, ValueError) else None
