"""Sessions over SQLAlchemy on SQLite and PostgreSQL.

Knows neither tables nor tenants. `reading` never commits; `write`, `writing` and `transact` are the
commit points.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from weft.db.batches import Batches, Work
from weft.db.engines import create_engine, create_transactions
from weft.db.errors import may_succeed_again, translated_errors
from weft.db.group_commit import GroupCommit
from weft.db.scope import refuse_unmarked
from weft.db.transactions import Transaction
from weft.db.urls import redacted

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
# of PostgreSQL: held by `writing` until its transaction ends
_WRITING_LOCK = 0x77656674
_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_PING = text("SELECT 1")
_MAX_RUNS = 5


class _GuardedSession(Session):
    """The session class whose statements all carry a scope."""


event.listen(_GuardedSession, "do_orm_execute", refuse_unmarked)


class Database:
    """Sessions over one database URL, used by one event loop. Close it with `await close()`.

    DatabaseUnavailableError wherever PostgreSQL cannot be reached; later calls connect again.
    """

    def __init__(self, url: str) -> None:
        self._shown_url = redacted(url)
        self._engine = create_engine(url)
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        options: dict[str, Any] = {
            "expire_on_commit": False,
            "sync_session_class": _GuardedSession,
        }
        self._read = async_sessionmaker(self._engine, **options)
        self._write = async_sessionmaker(self._engine.execution_options(weft_write=True), **options)
        # SQLite has one writer: waiting here is fair and cheaper than its busy loop
        self._writer = asyncio.Lock()
        self._group = GroupCommit(self._engine, self._writer, options)
        self._short = create_transactions(url, self._engine.dialect, self._writer)
        self._batches: list[Batches[Any, Any]] = []

    def __repr__(self) -> str:
        return f"Database({self._shown_url!r})"

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session for reads; whatever it changes is rolled back."""
        with translated_errors():
            async with self._read() as session:
                yield session

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncSession]:
        """A session for reads that all see the same moment."""
        async with self.reading() as session:
            if not self.is_sqlite:  # where every transaction is one
                await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A session for one transaction: commits at the end, rolls back on any exception.

        Transactions of `writing` run one at a time, on PostgreSQL over all processes: what one has
        read still holds when it commits. For administration; requests use `write`.
        """
        with translated_errors():
            if self.is_sqlite:
                async with self._writer, self._write() as session, session.begin():
                    yield session
            else:
                async with self._write() as session, session.begin():
                    connection = await session.connection()
                    await connection.execute(_LOCK, {"key": _WRITING_LOCK})
                    yield session

    async def write(self, job: Callable[[AsyncSession], Awaitable[ResultT]]) -> ResultT:
        """Run `job` in a transaction and give its result once that is committed.

        On SQLite jobs that wait are committed together, each undone alone if it raises. On
        PostgreSQL jobs run beside each other, READ COMMITTED, beside `writing` as well: a job must
        hold against that by constraints, conditional updates or locked rows. A job is run again
        if it lost against another one, so all that it does is done through its session. A caller
        that is cancelled does not know whether its job was committed.
        """
        with translated_errors():
            if self.is_sqlite:
                return await self._group.run(job)
            return await _run_again(lambda: self._run(job))

    async def transact(
        self, job: Callable[[Transaction], Awaitable[ResultT]], *, is_synced: bool = True
    ) -> ResultT:
        """Run `job`, of prepared statements, in a transaction, and give its result.

        For short jobs: on SQLite they run one at a time on the event loop itself. On PostgreSQL
        they run beside each other as those of `write` do, and again after they lost. Without
        `is_synced` a commit on SQLite outlives this process, but not the machine's crash.
        """
        with translated_errors():
            result = await _run_again(lambda: self._short.run(job))
            if is_synced:
                await self._short.sync()
            return result

    async def sync(self) -> None:
        """Return when all that was committed before outlives the machine's crash."""
        with translated_errors():
            await self._short.sync()

    def batches(self, work: Work[ItemT, ResultT]) -> Batches[ItemT, ResultT]:
        """Items that are worked on together; their transactions are not `is_synced`."""

        async def run(
            job: Callable[[Transaction], Awaitable[Sequence[ResultT | Exception]]],
        ) -> Sequence[ResultT | Exception]:
            return await self.transact(job, is_synced=False)

        batches = Batches[ItemT, ResultT](run, work)
        self._batches.append(batches)
        return batches

    async def ping(self) -> None:
        """DatabaseUnavailableError where the database does not answer."""
        with translated_errors():
            async with self._engine.connect() as connection:
                await connection.execute(_PING)

    async def _run(self, job: Callable[[AsyncSession], Awaitable[ResultT]]) -> ResultT:
        async with self._write() as session, session.begin():
            return await job(session)

    async def close(self) -> None:
        for batches in self._batches:
            await batches.close()
        await self._group.close()
        await self._short.close()
        await self._engine.dispose()


async def _run_again(run: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """`run`'s result, from one more run each time that it loses against another transaction."""
    for _ in range(_MAX_RUNS - 1):
        try:
            return await run()
        except Exception as error:
            if not may_succeed_again(error):
                raise
    return await run()
