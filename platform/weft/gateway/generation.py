"""The outputs of one HTTP request's engine requests, metered to their end whoever still listens.

What takes them puts them into one buffer; the HTTP side reads the buffer and may leave at any time.
Knows neither HTTP nor the shapes of answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from weft.messages import EngineOutput, EngineRequest, FinishReason, Usage
from weft.usage.models import Outcome
from weft.usage.service import MeteredRequest

if TYPE_CHECKING:
    from weft.gateway.generations import Generations

logger = logging.getLogger("weft.gateway")

_OUTCOMES: dict[FinishReason, Outcome] = {
    "stop": "ok",
    "length": "ok",
    "abort": "cancelled",
    "error": "error",
}
# above this many unread outputs, those of one choice are merged: fewer objects, same text
_MERGE_ABOVE = 256


@dataclass(frozen=True, slots=True)
class Job:
    """One engine request and how it is metered."""

    request: EngineRequest
    metered: MeteredRequest


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
    num_bytes = 4 * len(output.text) + 8 * len(output.token_ids)
    for entry in output.logprobs:
        num_bytes += 150 * (1 + len(entry.top))
    return num_bytes
