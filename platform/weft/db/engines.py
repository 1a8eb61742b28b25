"""SQLAlchemy engines set up for servers: SQLite safe for many readers and a writer, PostgreSQL with
bounded pools and waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Dialect, event
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from weft.db.hang import HangWatch
from weft.db.postgres_transactions import PostgresTransactions
from weft.db.sqlite_transactions import SqliteTransactions
from weft.db.transactions import Transactions
from weft.db.urls import async_url

SQLITE_BUSY_TIMEOUT_MS = 10_000
# connections of one process; PostgreSQL allows 100 in all unless told otherwise
POOL_SIZE = 10
POOL_OVERFLOW = 10
POOL_TIMEOUT_S = 5.0
POOL_RECYCLE_S = 1800
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 30_000
LOCK_TIMEOUT_MS = 5_000
# a transaction left open by a process that hangs would keep its locks
IDLE_TRANSACTION_TIMEOUT_MS = 60_000
# data that was sent and not acknowledged: the other machine is gone
TCP_USER_TIMEOUT_MS = 10_000


def create_engine(url: str) -> AsyncEngine:
    """ValueError for a database that is neither SQLite nor PostgreSQL."""
    parsed = async_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_async_engine(parsed)
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return create_async_engine(
        parsed,
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_timeout=POOL_TIMEOUT_S,
        pool_recycle=POOL_RECYCLE_S,
        pool_pre_ping=True,
        connect_args={
            **postgres_arguments(parsed, timeouts=True),
            "async_creator_fn": HangWatch().connect,
        },
    )


def create_transactions(url: str, dialect: Dialect, lock: asyncio.Lock) -> Transactions:
    """Short transactions on the same database; `lock` is SQLite's."""
    parsed = async_url(url)
    if parsed.get_backend_name() == "sqlite":
        assert parsed.database, "an SQLite database is a file"
        return SqliteTransactions(Path(parsed.database), dialect, lock)
    return PostgresTransactions(parsed, dialect, postgres_arguments(parsed, timeouts=True))


def postgres_arguments(url: URL, *, timeouts: bool) -> dict[str, Any]:
    """Arguments of libpq; what the URL says itself goes before. Migrations run without timeouts
    of statements: a large table may take its time."""
    settings = {"lock_timeout": LOCK_TIMEOUT_MS}
    if timeouts:
        settings |= {
            "statement_timeout": STATEMENT_TIMEOUT_MS,
            "idle_in_transaction_session_timeout": IDLE_TRANSACTION_TIMEOUT_MS,
        }
    arguments = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "application_name": "weft",
        "options": " ".join(f"-c {key}={value}" for key, value in settings.items()),
    }
    return {key: value for key, value in arguments.items() if key not in url.query}


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, see `_begin_sqlite`
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        # a commit that was answered outlives the machine's crash; jobs share the wait for the disk
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={SQLITE_BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # a writer takes the write lock at once: upgrading a read lock later can fail without waiting
    is_write = connection.get_execution_options().get("weft_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
