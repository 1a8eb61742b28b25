"""Short transactions on SQLite, which run where they are awaited: on the event loop.

A statement of a request takes some ten microseconds, and a hand-over to a thread and back several
times that. What waits for the disk goes to a thread: syncing the write-ahead log, once for all who
wait, and checkpoints. Transactions with long queries belong into `Database.write`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Dialect
from sqlalchemy.exc import DBAPIError

from weft.db.prepared import Prepared, Row, Values
from weft.db.transactions import Transaction
from weft.db.wal import WriteAheadLog

ResultT = TypeVar("ResultT")
# how long another process may write, and how often it is asked
BUSY_TIMEOUT_S = 10.0
_FIRST_WAIT_S, _LAST_WAIT_S = 0.001, 0.02
_BUSY = 5


class SqliteTransactions:
    """Of one event loop, one at a time; `lock` is held while one runs, and by all others that
    write in this process."""

    def __init__(self, file: Path, dialect: Dialect, lock: asyncio.Lock) -> None:
        self._file, self._dialect, self._lock = file, dialect, lock
        self._connection: sqlite3.Connection | None = None
        self._log = WriteAheadLog(file, lock)

    async def run(self, job: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        async with self._lock:
            try:
                if self._connection is None:
                    self._connection = await _when_free(lambda: connect(self._file))
                connection = self._connection
                await _when_free(lambda: connection.execute("BEGIN IMMEDIATE"))
                tx = SqliteTransaction(connection, self._dialect)
                try:
                    result = await job(tx)
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise wrapped(error) from error
        self._log.note_statements(tx.num_statements)
        return result

    async def sync(self) -> None:
        await self._log.sync()

    async def close(self) -> None:
        await self._log.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class SqliteTransaction:
    """Runs each statement at once."""

    def __init__(self, connection: sqlite3.Connection, dialect: Dialect) -> None:
        self._connection, self._dialect = connection, dialect
        self.num_statements = 0

    async def ask(self, statement: Prepared, values: Sequence[Values]) -> SqliteAnswers:
        compiled = statement.on(self._dialect)
        execute, sql = self._connection.execute, compiled.sql
        self.num_statements += len(values)
        return SqliteAnswers(
            [compiled.rows(execute(sql, compiled.values(each)).fetchall()) for each in values]
        )

    async def run(self, statement: Prepared, values: Sequence[Values]) -> None:
        compiled = statement.on(self._dialect)
        self.num_statements += len(values)
        if len(values) == 1:
            self._connection.execute(compiled.sql, compiled.values(values[0]))
        elif values:
            self._connection.executemany(compiled.sql, map(compiled.values, values))


class SqliteAnswers:
    """Rows that are there."""

    def __init__(self, rows: list[Sequence[Row]]) -> None:
        self._rows = rows

    async def rows(self) -> list[Sequence[Row]]:
        return self._rows


def connect(file: Path) -> sqlite3.Connection:
    """One whose commits wait for nothing."""
    connection = sqlite3.connect(file, isolation_level=None, timeout=0)
    try:
        for pragma in (
            "journal_mode=WAL",
            # the log is written by the commit and synced by `WriteAheadLog`, as FULL would do it
            "synchronous=NORMAL",
            "wal_autocheckpoint=0",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


async def _when_free(take: Callable[[], ResultT]) -> ResultT:
    """`take`'s result, once no other process has the lock that it needs."""
    end_s, wait_s = time.monotonic() + BUSY_TIMEOUT_S, _FIRST_WAIT_S
    while True:
        try:
            return take()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != _BUSY or time.monotonic() > end_s:
                raise
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LAST_WAIT_S)


def wrapped(error: sqlite3.Error) -> BaseException:
    """As sessions raise it."""
    return DBAPIError.instance(None, None, error, sqlite3.Error)
