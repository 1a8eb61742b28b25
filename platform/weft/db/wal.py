"""SQLite's write-ahead log, brought to the disk beside the event loop.

In WAL mode a commit is durable once the log is synced up to it; with `synchronous=FULL` SQLite does
that within each COMMIT. Done by us, one sync serves all who wait, and transactions go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

logger = logging.getLogger("weft.db")

# after as many statements, which write about a page of 4 KiB each: SQLite's own measure is 1,000
_STATEMENTS_PER_CHECKPOINT = 4000
_sync_data = getattr(os, "fdatasync", os.fsync)


class WriteAheadLog:
    """Of one database file; `lock` is held by whoever writes in this process."""

    def __init__(self, file: Path, lock: asyncio.Lock) -> None:
        self._file, self._lock = file, lock
        self._log_file = file.with_name(file.name + "-wal")
        self._threads = ThreadPoolExecutor(2, "weft-wal")
        self._next_sync: asyncio.Future[None] | None = None
        self._sync_task: asyncio.Task[None] | None = None
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._num_statements = 0

    async def sync(self) -> None:
        """Return when what is committed by now is on the disk; OSError if it cannot be brought
        there."""
        # one that has begun may have passed over what was written since
        if self._next_sync is None:
            self._next_sync = asyncio.get_running_loop().create_future()
        mine = self._next_sync
        if self._sync_task is None:
            self._sync_task = asyncio.create_task(self._sync_all(), name="weft-wal-sync")
        await asyncio.shield(mine)

    async def _sync_all(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._next_sync is not None:
                done, self._next_sync = self._next_sync, None
                try:
                    await loop.run_in_executor(self._threads, self._sync)
                except OSError as error:
                    done.set_exception(error)
                    done.exception()  # whoever waited may be gone
                else:
                    done.set_result(None)
        finally:
            self._sync_task = None

    def _sync(self) -> None:
        try:
            fd = os.open(self._log_file, os.O_RDWR)
        except FileNotFoundError:
            return  # all of it is in the database
        try:
            _sync_data(fd)
        finally:
            os.close(fd)

    def note_statements(self, number: int) -> None:
        """The log has grown by so many; from time to time it is brought into the database."""
        self._num_statements += number
        if self._num_statements >= _STATEMENTS_PER_CHECKPOINT and self._checkpoint_task is None:
            self._num_statements = 0
            self._checkpoint_task = asyncio.create_task(self._checkpoint(), name="weft-checkpoint")

    async def _checkpoint(self) -> None:
        """Almost all of it beside others; the rest while nobody writes, so that the log, which is
        then wholly in the database, is written from its beginning again."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, _checkpoint, self._file)
            async with self._lock:
                await loop.run_in_executor(self._threads, _checkpoint, self._file)
        except sqlite3.Error:
            logger.exception("a checkpoint failed; the log grows until the next one")
        finally:
            self._checkpoint_task = None

    async def close(self) -> None:
        """Wait for what is under way."""
        for task in (self._sync_task, self._checkpoint_task):
            if task is not None:
                await task
        self._threads.shutdown()


def _checkpoint(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
