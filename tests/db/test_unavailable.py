"""A PostgreSQL server that goes away and comes back, and a disk that is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import bindparam, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from tests.servers import PostgresServer
from tests.stores import PostgresDatabases

from weft.db import hang
from weft.db.database import Database
from weft.db.dependencies import ReadSession, WriteSession
from weft.db.errors import DatabaseUnavailableError
from weft.db.prepared import Prepared, Row
from weft.db.scope import unscoped
from weft.db.transactions import Transaction, fetch
from weft.gateway.error_handlers import install_error_handlers
from weft.tenancy.models import Tenant

ADD = Prepared(
    insert(Tenant).values(
        id=bindparam("id"), name=bindparam("id"), created_at=1, include_obfuscation=False
    )
)
TENANTS = Prepared(unscoped(select(Tenant.id), "a test"))


@pytest.fixture(scope="module")
def server(create_postgres: Callable[[], PostgresServer]) -> Iterator[PostgresServer]:
    server = create_postgres()
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def databases(server: PostgresServer) -> PostgresDatabases:
    return PostgresDatabases(server.url)


@pytest.fixture
async def lost(databases: PostgresDatabases) -> AsyncIterator[Database]:
    """On the server that the test stops; its pool has connections that were good before."""
    database = Database(databases.create())
    await asyncio.gather(*(count(database) for _ in range(3)))
    yield database
    await database.close()


async def count(database: Database) -> int:
    async with database.reading() as session:
        found: int | None = await session.scalar(unscoped(select(func.count(Tenant.id)), "a test"))
        assert found is not None
        return found


async def add(session: AsyncSession, name: str) -> None:
    session.add(Tenant(id=name, name=name, created_at=1, deleted_at=None))
    await session.flush()


async def test_a_server_that_is_away_is_said_so_and_found_again(
    lost: Database, server: PostgresServer
) -> None:
    server.stop()
    for work in (lambda: count(lost), lambda: lost.write(lambda s: add(s, "a"))):
        with pytest.raises(DatabaseUnavailableError) as caught:
            await work()
        assert caught.value.status_code == 503
        assert int(caught.value.headers["retry-after"]) >= 1
    with pytest.raises(DatabaseUnavailableError):
        async with lost.writing() as session:
            await add(session, "b")
    with pytest.raises(DatabaseUnavailableError):
        await lost.ping()
    server.start()
    await lost.ping()
    await asyncio.gather(*(count(lost) for _ in range(3)))
    await lost.write(lambda session: add(session, "c"))
    assert await count(lost) == 1


async def test_a_server_that_dies_within_a_transaction_leaves_nothing_of_it(
    lost: Database, server: PostgresServer
) -> None:
    async def job(session: AsyncSession) -> None:
        await add(session, "a")
        server.kill()
        await add(session, "b")

    with pytest.raises(DatabaseUnavailableError):
        await lost.write(job)
    server.start()
    assert await count(lost) == 0


async def test_short_transactions_find_a_server_again_and_leave_nothing_of_one_that_dies(
    lost: Database, server: PostgresServer
) -> None:
    async def job(tx: Transaction) -> list[Sequence[Row]]:
        return await fetch(tx, TENANTS, [{}])

    async def job_of_the_dying(tx: Transaction) -> None:
        await tx.run(ADD, [{"id": "a"}])
        server.kill()
        await fetch(tx, TENANTS, [{}])

    assert await lost.transact(job) == [[]]
    with pytest.raises(DatabaseUnavailableError):
        await lost.transact(job_of_the_dying)
    with pytest.raises(DatabaseUnavailableError):
        await lost.transact(job)
    server.start()
    assert await asyncio.gather(*(lost.transact(job) for _ in range(3))) == [[[]]] * 3
    server.stop()
    server.start()
    # its connections are closed by now: what is not committed is done on a new one
    assert await lost.transact(job) == [[]]


async def test_callers_get_503_and_the_next_request_works(
    lost: Database, server: PostgresServer
) -> None:
    app = FastAPI()
    app.state.database = lost
    install_error_handlers(app)

    @app.get("/tenants")
    async def read(session: ReadSession) -> int | None:
        return await session.scalar(unscoped(select(func.count(Tenant.id)), "a test"))

    @app.post("/tenants")
    async def write(session: WriteSession) -> None:
        await add(session, "a")

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://weft") as client:
        server.stop()
        for response in (await client.get("/tenants"), await client.post("/tenants")):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "2"
            assert response.json()["error"]["code"] == "database_unavailable"
        server.start()
        assert (await client.post("/tenants")).status_code == 200
        assert (await client.get("/tenants")).json() == 1


async def sleep(database: Database, seconds: float) -> None:
    async with database.reading() as session:
        await (await session.connection()).execute(text(f"SELECT pg_sleep({seconds})"))


async def test_a_statement_may_take_its_time_while_the_server_answers_others(
    lost: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang, "PATIENCE_S", 0.05)
    await sleep(lost, 0.5)
    monkeypatch.setattr(hang, "MAX_WAIT_S", 0.3)
    with pytest.raises(DatabaseUnavailableError):
        await sleep(lost, 20)
    await sleep(lost, 0)


async def test_a_server_that_hangs_is_given_up_and_found_again(
    lost: Database, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang, "PATIENCE_S", 0.1)
    monkeypatch.setattr(hang, "ANSWER_S", 0.3)

    async def job(session: AsyncSession) -> None:
        await add(session, "a")
        with server.frozen():
            await add(session, "b")

    async with asyncio.timeout(10):
        with pytest.raises(DatabaseUnavailableError):
            await lost.write(job)
    assert await count(lost) == 0


async def test_on_a_full_disk_no_job_is_told_that_it_is_committed_and_is_not(
    sqlite_database_url: str,
) -> None:
    database = Database(sqlite_database_url)

    async def fill(session: AsyncSession) -> None:
        connection = await session.connection()
        used = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
        await connection.exec_driver_sql(f"PRAGMA max_page_count={used + 8}")
        for n in range(10):
            await add(session, f"{n}-" + "x" * 50_000)

    results = await asyncio.gather(
        *(database.write(lambda s, n=n: add(s, f"before {n}")) for n in range(3)),  # type: ignore[misc]
        database.write(fill),
        *(database.write(lambda s, n=n: add(s, f"after {n}")) for n in range(3)),  # type: ignore[misc]
        return_exceptions=True,
    )
    assert isinstance(results[3], Exception)
    assert await count(database) == results.count(None)
    await database.write(lambda session: add(session, "later"))
    await database.close()
