"""Metering at work: the recorder, and what goes on beside it while the server runs.

Each process says that it lives, what its engine has counted, and delivers messages; one of them at
a time gives up dead processes and adds events up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from weft.db import leases
from weft.db.database import Database
from weft.messages import EngineClient
from weft.usage.dispatch import Dispatcher
from weft.usage.metrics import MeteringCounts, MeteringMetrics
from weft.usage.rollups import roll_up
from weft.usage.service import UsageRecorder
from weft.usage.sinks import Sink
from weft.usage.verification import Check, verify

logger = logging.getLogger("weft.usage")

BEAT_S = 5.0
# a process that was silent for so long is dead, or will find that it was taken for dead
SILENCE_S = 60.0
CHORES_S = 10.0
DISPATCH_S = 1.0
DELETE_S = 3600.0
VERIFY_S, VERIFY_LEASE_S = 24 * 3600.0, 600.0
# for what is under way at the end
_STOP_S = 5.0
_LEASE, _VERIFY_LEASE = "usage", "usage-verification"


class Metering:
    """One process's part in metering. `is_alone`: no other one works on the database.

    `more_checks` are made once a day beside its own, on what is made of usage elsewhere.
    """

    def __init__(
        self,
        database: Database,
        engine: EngineClient,
        sinks: Mapping[str, Sink],
        *,
        is_alone: bool,
        more_checks: Sequence[Check] = (),
    ) -> None:
        self._database, self._engine, self._is_alone = database, engine, is_alone
        self.recorder = UsageRecorder(database, tuple(sinks), lambda: engine.info.engine_id)
        self.counts = MeteringCounts()
        self.metrics = MeteringMetrics(self.counts)
        self.dispatcher = Dispatcher(database, sinks, self.counts)
        self._has_sinks = bool(sinks)
        self._more_checks = more_checks
        self._holder = leases.create_holder()
        self._stopping = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """What a crash left is made up for at the start; at the end nothing is under way."""
        self._note_lost(await self.recorder.start(is_alone=self._is_alone))
        self._stopping.clear()
        works = [(BEAT_S, self._beat), (CHORES_S, self._do_chores)]
        if self._has_sinks:
            works += [(DISPATCH_S, self._dispatch), (DELETE_S, self._delete_old)]
        tasks = [asyncio.create_task(self._repeat(*work)) for work in works]
        tasks.append(asyncio.create_task(self._repeat(VERIFY_S, self._verify, is_delayed=True)))
        try:
            yield
        finally:
            self._stopping.set()
            _, late = await asyncio.wait(tasks, timeout=_STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            await self._close()

    async def _close(self) -> None:
        """A database that is away does not hold up the end; the process is then found silent."""
        try:
            await self.checkpoint()
            await self.recorder.close()
        except Exception:
            logger.exception("the end of this process could not be recorded")
        await self.dispatcher.close()

    async def checkpoint(self) -> None:
        """Record what the engine has counted until now."""
        await self.recorder.replicas.checkpoint(self._engine)

    async def _beat(self) -> None:
        await self.recorder.beat()
        num_orphans = await self.recorder.sweep()
        if num_orphans:
            logger.warning("%d admissions that nobody waits for are given back", num_orphans)
            self.counts.num_orphans += num_orphans
        await self.checkpoint()

    async def _do_chores(self) -> None:
        await leases.run_alone(self._database, _LEASE, self._holder, self._do_chores_alone)

    async def _do_chores_alone(self) -> None:
        self._note_lost(await self.recorder.replicas.lose_silent(SILENCE_S))
        await roll_up(self._database)

    async def _dispatch(self) -> None:
        await self.dispatcher.deliver_due()

    async def _delete_old(self) -> None:
        await self.dispatcher.delete_old()

    async def _verify(self) -> None:
        await leases.run_alone(
            self._database, _VERIFY_LEASE, self._holder, self.verify, duration_s=VERIFY_LEASE_S
        )

    async def verify(self) -> None:
        """Compare all that is written; what differs is logged, and counted in the metrics."""
        found = [
            (result.name, difference)
            for result in await verify(self._database, self._more_checks)
            for difference in result.differences
        ]
        for name, difference in found:
            logger.error("billing verification, %s: %s", name, difference)
        self.counts.num_differences = len(found)

    async def _repeat(
        self,
        interval_s: float,
        work: Callable[[], Awaitable[None]],
        *,
        is_delayed: bool = False,
    ) -> None:
        """Now (or not yet) and then until the end; what fails is tried again the next time."""
        while not self._stopping.is_set():
            if not is_delayed:
                try:
                    await work()
                except Exception:
                    logger.exception("metering: %s failed; it is tried again", work.__name__)
            is_delayed = False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), interval_s)

    def _note_lost(self, num_lost: int) -> None:
        self.counts.num_lost += num_lost
        if num_lost:
            logger.warning("%d requests were lost in a crash and are billed nothing", num_lost)
