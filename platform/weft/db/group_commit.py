"""SQLite's writer: one task runs the jobs that wait, each in a savepoint, and commits them at once.

One wait for the disk is then shared by all of them. Knows jobs and sessions, no tables.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

ResultT = TypeVar("ResultT")
# others wait for the lock meanwhile
MAX_JOBS = 128


class DatabaseClosedError(Exception):
    """The database was closed before the job was run."""


@dataclass(eq=False, slots=True)
class _Job:
    run: Callable[[AsyncSession], Awaitable[Any]]
    done: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def resolve(self, group_error: BaseException | None) -> None:
        """Tell the caller; `group_error` is what kept the whole group from being committed."""
        if self.done.done():
            return  # it does not wait any more
        error = self.error or group_error
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(self.result)


class GroupCommit:
    """Jobs of one event loop over one engine; `lock` is held while a group runs."""

    def __init__(
        self, engine: AsyncEngine, lock: asyncio.Lock, session_options: dict[str, Any]
    ) -> None:
        self._engine = engine.execution_options(weft_write=True)
        self._lock = lock
        self._options = {**session_options, "join_transaction_mode": "create_savepoint"}
        self._waiting: deque[_Job] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def run(self, job: Callable[[AsyncSession], Awaitable[ResultT]]) -> ResultT:
        """The job's result, or what it raised; either way the group was committed before."""
        if self._is_closed:
            raise DatabaseClosedError
        waiting = _Job(job, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run_all(), name="weft-writer")
        result: ResultT = await waiting.done
        return result

    async def close(self) -> None:
        """Run what waits, take no more."""
        self._is_closed = True
        if self._task is not None:
            await self._task

    async def _run_all(self) -> None:
        """Ends when nothing waits: an idle database holds neither task nor connection."""
        try:
            while self._waiting:
                async with self._lock:
                    num_jobs = min(len(self._waiting), MAX_JOBS)
                    await self._run_group([self._waiting.popleft() for _ in range(num_jobs)])
        finally:
            self._task = None

    async def _run_group(self, jobs: list[_Job]) -> None:
        group_error: BaseException | None = None
        try:
            async with self._engine.connect() as connection, connection.begin():
                for job in jobs:
                    if not job.done.done():
                        await self._run_job(connection, job)
        except BaseException as error:
            group_error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for job in jobs:
                job.resolve(group_error)

    async def _run_job(self, connection: AsyncConnection, job: _Job) -> None:
        session = AsyncSession(connection, **self._options)
        try:
            async with session, session.begin():
                job.result = await job.run(session)
        except Exception as error:
            # some errors (a full disk) make SQLite undo the whole transaction, and with it what
            # the jobs before this one have done: then none of them may be told that it is committed
            if not await _is_in_transaction(connection):
                raise
            job.error = error


async def _is_in_transaction(connection: AsyncConnection) -> bool:
    raw = await connection.get_raw_connection()
    assert raw.driver_connection is not None
    is_open: bool = raw.driver_connection.in_transaction
    return is_open
