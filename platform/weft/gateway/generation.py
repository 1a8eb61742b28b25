"""The engine requests behind one HTTP request, metered to their end whoever still listens.

A task per engine request takes its outputs into one buffer; the HTTP side reads the buffer and may
leave at any time. Knows neither HTTP nor the shapes of answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from weft.errors import InvalidRequestError, OverloadedError, WeftError
from weft.gateway.faults import draining_error
from weft.gateway.metrics import GatewayMetrics
from weft.limits.admission import Admission
from weft.messages import (
    EngineClient,
    EngineDeadError,
    EngineDrainingError,
    EngineOutput,
    EngineQueueFullError,
    EngineRequest,
    FinishReason,
    Usage,
)
from weft.usage.models import Outcome
from weft.usage.service import MeteredRequest, UsageRecorder

logger = logging.getLogger("weft.gateway")

_OUTCOMES: dict[FinishReason, Outcome] = {
    "stop": "ok",
    "length": "ok",
    "abort": "cancelled",
    "error": "error",
}
# above this many unread outputs, those of one choice are merged: fewer objects, same text
_MERGE_ABOVE = 256
# how long an engine has to answer an abort when the app closes
_CLOSE_S = 10.0
# pauses between attempts to write usage while the database refuses
_FIRST_RETRY_S, _LAST_RETRY_S = 0.25, 30.0


@dataclass(frozen=True, slots=True)
class Job:
    """One engine request and how it is metered."""

    request: EngineRequest
    metered: MeteredRequest


class Generations:
    """All generations of an app: starts them, and waits for their ends at shutdown."""

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


class Generation:
    """Outputs of several jobs, read as `(index, output)` in the order in which they came.

    Choice c of job j has the index `j * n + c`.
    """

    def __init__(
        self,
        owner: Generations,
        jobs: Sequence[Job],
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._owner = owner
        self._jobs = jobs
        self.headers = headers
        self._started_s = time.monotonic()
        self._unread: list[tuple[int, EngineOutput]] = []
        self._place: dict[int, int] = {}  # of each choice's last output in `_unread`
        self._unread_bytes = 0
        self.num_open = len(jobs)
        self.usages = [Usage(0, 0)] * len(jobs)
        self._changed = asyncio.Event()
        self.is_cancelled = False
        self.is_too_slow = False

    @property
    def num_choices(self) -> int:
        return sum(job.request.sampling.n for job in self._jobs)

    @property
    def is_over(self) -> bool:
        """Everything was read, or nobody wants to read any more."""
        return self.is_cancelled or (self.num_open == 0 and not self._unread)

    def cancel(self) -> None:
        """Stop the engine's work; what was generated is still metered. Idempotent."""
        self.is_cancelled = True
        self._unread = []
        for job in self._jobs:
            self._owner.engine.abort(job.request.request_id)
        self._changed.set()

    async def read(self, timeout_s: float | None) -> list[tuple[int, EngineOutput]]:
        """What has come since the last read; empty at the end, or after `timeout_s`, if given."""
        if not self._unread and not self.is_over:
            self._changed.clear()
            if timeout_s is None:
                await self._changed.wait()
            else:
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._changed.wait()
                except TimeoutError:
                    return []
        outputs, self._unread = self._unread, []
        self._place.clear()
        self._unread_bytes = 0
        return outputs

    async def pump(self, index: int, stream: AsyncIterator[EngineOutput]) -> None:
        """Take one job's outputs to the end, write its usage, then let the reader see the end.

        The usage row's reason is that of the choice that ended last, or "error" where one failed.
        A database that refuses holds up the meter, not the reader.
        """
        job = self._jobs[index]
        first = index * job.request.sampling.n  # one HTTP request's jobs have the same n
        last = EngineOutput(job.request.request_id, "", (), Usage(0, 0))
        has_failed, error = False, "The engine went away."
        try:
            async for output in stream:
                last = output
                self.usages[index] = output.usage
                has_failed |= output.finish_reason == "error"
                if not output.is_last:
                    self._put(first + output.index, output)
        except Exception as caught:  # whatever it is, the reader and the meter must hear of it
            logger.exception("%s: the engine's stream failed", job.request.request_id)
            error = str(caught)
            last = replace(last, is_last=False)
        is_lost = not last.is_last or last.error_code == "engine_failed"
        if not last.is_last:  # what it had was read; only its end is new
            last = EngineOutput(last.request_id, "", (), last.usage, "error", error, is_last=True)
        assert last.finish_reason is not None, "the last output ends its choice"
        reason: FinishReason = "error" if has_failed else last.finish_reason
        ended_s = time.monotonic()
        self._owner.metrics.request_finished(reason, ended_s - self._started_s)
        # an engine that is gone has not said what it counted: nobody pays for that
        outcome: Outcome = "lost" if is_lost else _OUTCOMES[reason]

        async def write() -> None:
            await self._owner.recorder.finish(job.metered, last.usage, reason, outcome, ended_s)

        is_written = await self._owner.try_write(write)
        # before the reader sees the end, so that its next request finds the place free
        num_tokens = last.usage.num_prompt_tokens + last.usage.num_completion_tokens
        await self._owner.admission.settle(job.request.request_id, num_tokens)
        self.num_open -= 1
        self._put(first + last.index, last)
        if not is_written:
            await self._owner.write_later(write)

    def _put(self, index: int, output: EngineOutput) -> None:
        if self.is_cancelled:
            return
        self._unread_bytes += _num_bytes(output)
        if len(self._unread) > _MERGE_ABOVE and index in self._place:
            place = self._place[index]
            self._unread[place] = (index, _merged(self._unread[place][1], output))
        else:
            self._place[index] = len(self._unread)
            self._unread.append((index, output))
        self._changed.set()
        if self._unread_bytes > self._owner.max_backlog_bytes:
            self.is_too_slow = True
            self.cancel()


def _merged(first: EngineOutput, second: EngineOutput) -> EngineOutput:
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
    )


def _num_bytes(output: EngineOutput) -> int:
    num_logprobs = sum(1 + len(entry.top) for entry in output.logprobs)
    return 4 * len(output.text) + 8 * len(output.token_ids) + 150 * num_logprobs


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
