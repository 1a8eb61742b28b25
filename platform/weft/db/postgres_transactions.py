"""Short transactions on PostgreSQL, in the fewest round trips: statements travel in a pipeline, and
BEGIN and COMMIT with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from sqlalchemy import URL, Dialect
from sqlalchemy.exc import DBAPIError

from weft.db.hang import HangWatch
from weft.db.prepared import Compiled, Prepared, Row, Values
from weft.db.transactions import Transaction

ResultT = TypeVar("ResultT")
# connections that are kept; at most as many are open as transactions run at once
MAX_IDLE = 4


class PostgresTransactions:
    """Over connections of their own, opened with `arguments` of libpq. Used by one event loop."""

    def __init__(self, url: URL, dialect: Dialect, arguments: dict[str, Any]) -> None:
        _, from_url = dialect.create_connect_args(url)
        self._arguments, self._dialect = {**from_url, **arguments}, dialect
        self._watch = HangWatch()
        self._idle: list[AsyncConnection[Row]] = []

    async def run(self, job: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._run(connection, job)
            except _LostError:
                pass  # the server went away since it was used; nothing can have been committed
        try:
            connection = await self._watch.connect(**self._arguments, autocommit=True)
        except psycopg.Error as error:
            raise wrapped(error, is_lost=True) from error
        try:
            return await self._run(connection, job)
        except _LostError as lost:
            raise wrapped(lost.error, is_lost=True) from lost.error

    async def _run(
        self,
        connection: AsyncConnection[Row],
        job: Callable[[Transaction], Awaitable[ResultT]],
    ) -> ResultT:
        is_committing = is_over = False
        try:
            async with connection.pipeline():
                await connection.execute("BEGIN")
                result = await job(PostgresTransaction(connection, self._dialect))
                is_committing = True
                await connection.execute("COMMIT")
            is_over = True
            return result
        except psycopg.Error as error:
            is_lost = connection.closed
            if is_lost and not is_committing:
                raise _LostError(error) from error
            is_over = await _roll_back(connection)
            raise wrapped(error, is_lost=is_lost) from error
        except Exception:
            is_over = await _roll_back(connection)
            raise
        finally:
            if is_over and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
            else:  # cancelled, too: nobody knows what it was doing
                await connection.close()

    async def sync(self) -> None:
        """A commit is durable."""

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


class PostgresTransaction:
    """Sends statements and goes on until an answer is waited for."""

    def __init__(self, connection: AsyncConnection[Row], dialect: Dialect) -> None:
        self._connection, self._dialect = connection, dialect

    async def ask(self, statement: Prepared, values: Sequence[Values]) -> PostgresAnswers:
        compiled = statement.on(self._dialect)
        cursors = []
        for each in values:
            cursor = self._connection.cursor()
            await cursor.execute(compiled.sql, compiled.values(each))
            cursors.append(cursor)
        return PostgresAnswers(compiled, cursors)

    async def run(self, statement: Prepared, values: Sequence[Values]) -> None:
        compiled = statement.on(self._dialect)
        cursor = self._connection.cursor()
        for each in values:  # `executemany` would wait for what was sent before
            await cursor.execute(compiled.sql, compiled.values(each))


class PostgresAnswers:
    """Cursors whose rows may be under way."""

    def __init__(self, compiled: Compiled, cursors: Sequence[AsyncCursor[Row]]) -> None:
        self._compiled, self._cursors = compiled, cursors

    async def rows(self) -> list[Sequence[Row]]:
        return [self._compiled.rows(await cursor.fetchall()) for cursor in self._cursors]


class _LostError(Exception):
    """The connection broke before the transaction's COMMIT was sent."""

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(str(error))
        self.error = error


async def _roll_back(connection: AsyncConnection[Row]) -> bool:
    """False where the connection cannot be used any more."""
    if connection.closed:
        return False
    try:
        await connection.execute("ROLLBACK")
    except psycopg.Error:
        return False
    return True


def wrapped(error: psycopg.Error, *, is_lost: bool) -> BaseException:
    """As sessions raise it."""
    return DBAPIError.instance(None, None, error, psycopg.Error, connection_invalidated=is_lost)
