"""Engine and sessions over SQLAlchemy; SQLite is set up to be safe for many readers and a writer.

Knows neither tables nor tenants. `reading` never commits, `writing` is the one commit point.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from weft.db.scope import refuse_unmarked

BUSY_TIMEOUT_MS = 10_000


def sqlite_url(file: Path, *, driver: str = "sqlite+aiosqlite") -> str:
    """The URL of a database file."""
    return f"{driver}:///{file.resolve()}"


class _GuardedSession(Session):
    """The session class whose statements all carry a scope."""


event.listen(_GuardedSession, "do_orm_execute", refuse_unmarked)


class Database:
    """Sessions over one database URL. Close it with `await close()`."""

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _set_up_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)
        options: dict[str, Any] = {
            "expire_on_commit": False,
            "sync_session_class": _GuardedSession,
        }
        self._read = async_sessionmaker(self._engine, **options)
        self._write = async_sessionmaker(self._engine.execution_options(weft_write=True), **options)
        # SQLite has one writer: waiting here is fair and cheaper than its busy loop
        self._writer = asyncio.Lock()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session for reads; whatever it changes is rolled back."""
        async with self._read() as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A session for one transaction: commits at the end, rolls back on any exception."""
        async with self._writer, self._write() as session, session.begin():
            yield session

    async def close(self) -> None:
        await self._engine.dispose()


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, see `_begin_sqlite`
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # a writer takes the write lock at once: upgrading a read lock later can fail without waiting
    is_write = connection.get_execution_options().get("weft_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def create_database_file(file: Path) -> None:
    """Make an empty database that only this user may read; SQLite gives its side files the same."""
    if not file.exists():
        file.touch(mode=0o600)
