"""SQLite's log reaches the disk for all who wait, and does not grow for ever."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import bindparam, insert, select

from weft.db import sqlite_transactions, wal
from weft.db.database import Database
from weft.db.errors import DatabaseUnavailableError
from weft.db.prepared import Prepared
from weft.db.scope import unscoped
from weft.db.transactions import Transaction, fetch
from weft.db.urls import async_url
from weft.tenancy.models import Tenant

ADD = Prepared(
    insert(Tenant).values(
        id=bindparam("id"), name=bindparam("id"), created_at=1, include_obfuscation=False
    )
)
IDS = Prepared(unscoped(select(Tenant.id), "a test"))


@pytest.fixture
def file(sqlite_database_url: str) -> Path:
    return Path(async_url(sqlite_database_url).database or "")


@pytest.fixture
async def database(sqlite_database_url: str) -> AsyncIterator[Database]:
    database = Database(sqlite_database_url)
    yield database
    await database.close()


async def add(tx: Transaction, id_: str) -> None:
    await tx.run(ADD, [{"id": id_}])


async def test_one_sync_after_the_commit_serves_all_who_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_syncs, sync_data = 0, wal._sync_data

    def count(fd: int) -> None:
        nonlocal num_syncs
        num_syncs += 1
        sync_data(fd)

    monkeypatch.setattr(wal, "_sync_data", count)
    await database.transact(lambda tx: add(tx, "a"), is_synced=False)
    assert num_syncs == 0
    await asyncio.gather(
        *(database.transact(lambda tx, n=n: add(tx, f"t{n}")) for n in range(20))  # type: ignore[misc]
    )
    assert 1 <= num_syncs <= 5


async def test_a_disk_that_takes_nothing_is_not_kept_secret(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(wal, "_sync_data", fail)
        with pytest.raises(OSError, match="Input/output"):
            await database.transact(lambda tx: add(tx, "a"))
    await database.transact(lambda tx: add(tx, "b"))


async def test_the_log_is_written_from_its_beginning_again(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "_STATEMENTS_PER_CHECKPOINT", 100)
    sizes = []
    for n in range(600):
        await database.transact(lambda tx, n=n: add(tx, f"t{n}"), is_synced=False)  # type: ignore[misc]
        await asyncio.sleep(0)
        sizes.append(file.with_name(f"{file.name}-wal").stat().st_size)
    assert sizes[-1] < 2 * sizes[199]


async def test_a_job_waits_until_another_process_has_written(
    database: Database, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(database.transact(lambda tx: add(tx, "a")))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    other.execute("ROLLBACK")
    await waiting
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite_transactions, "BUSY_TIMEOUT_S", 0.05)
    with pytest.raises(DatabaseUnavailableError):
        await database.transact(lambda tx: add(tx, "b"))
    other.close()
    assert await database.transact(lambda tx: fetch(tx, IDS, [{}])) == [[("a",)]]
