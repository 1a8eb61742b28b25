"""A pytest plugin: fixtures that give a fresh PostgreSQL, SQLite or Redis database.

A server is started once per process of the test run, or named by WEFT_TEST_POSTGRES_URL or
WEFT_TEST_REDIS_URL. Where one can be had by neither way, its tests are skipped and the end of the
run says so; with CI=true they fail. Imports no more than the standard library until a fixture is
used: the engine's tests run on machines without the web's packages.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.servers import (
    LocalServer,
    PostgresServer,
    RedisServer,
    ServerMissingError,
    libpq_url,
)

ServerT = TypeVar("ServerT", bound=LocalServer)

_CUT_OFF = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
# as a replica: neither the order of foreign keys nor a trigger that keeps rows for ever counts
_EMPTY = """
DO $$
DECLARE name text;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public'
        AND tablename <> 'alembic_version' LOOP
        EXECUTE format('DELETE FROM %I', name);
    END LOOP;
END $$
"""

_not_run: set[str] = set()


class PostgresDatabases:
    """Fresh databases on one PostgreSQL server, with this release's tables or empty.

    The server's user has to be a superuser, as one is on a server of our own.
    """

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self._template: str | None = None
        # emptying a database takes a tenth of the time of making one
        self._migrated: set[str] = set()
        self._free: list[str] = []

    def create(self, *, is_empty: bool = False) -> str:
        """The URL of a database whose tables hold no row, or that has no table."""
        if is_empty:
            return self._create("template0")
        if self._free:
            return self._free.pop()
        if self._template is None:
            from weft.db.schema import migrate

            self._template = self._create("template0")
            migrate(self._template)
        url = self._create(_database_name(self._template))
        self._migrated.add(url)
        return url

    def drop(self, url: str) -> None:
        """Give a database back, cutting off whoever is connected."""
        if url in self._migrated:
            self._execute(_CUT_OFF.format(name=_database_name(url)))
            self._execute(_EMPTY, url)
            self._free.append(url)
        else:
            self._execute(f"DROP DATABASE {_database_name(url)} WITH (FORCE)")

    def close(self) -> None:
        """Leave nothing on the server."""
        for url in (*self._migrated, *filter(None, [self._template])):
            self._execute(f"DROP DATABASE {_database_name(url)} WITH (FORCE)")

    def _create(self, template: str) -> str:
        name = f"weft_test_{secrets.token_hex(6)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"{self.server_url.rsplit('/', 1)[0]}/{name}"

    def _execute(self, statement: str, url: str | None = None) -> None:
        import psycopg

        # a name in a statement is one of `_create`'s
        with closing(psycopg.connect(libpq_url(url or self.server_url), autocommit=True)) as opened:
            opened.execute(statement.encode())


@pytest.fixture(scope="session")
def create_postgres() -> Callable[[], PostgresServer]:
    """Gives a PostgreSQL server that is not started yet, for tests that stop it; they close it."""
    return lambda: _or_skip("PostgreSQL", PostgresServer)


@pytest.fixture(scope="session")
def create_redis() -> Callable[[], RedisServer]:
    """Gives a Redis server that is not started yet, for tests that stop it; they close it."""
    return lambda: _or_skip("Redis", RedisServer)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresDatabases]:
    """Databases on the PostgreSQL server of this process's tests."""
    named = os.environ.get("WEFT_TEST_POSTGRES_URL")
    server = None if named else _or_skip("PostgreSQL", PostgresServer)
    if server is not None:
        server.start()
    databases = PostgresDatabases(named or (server.url if server else ""))
    yield databases
    if server is not None:
        server.close()
    else:
        databases.close()


@pytest.fixture
def postgres_url(postgres: PostgresDatabases) -> Iterator[str]:
    """A fresh, migrated PostgreSQL database."""
    url = postgres.create()
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def _migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database, to copy."""
    from weft.db.schema import migrate
    from weft.db.urls import sqlite_url

    file = tmp_path_factory.mktemp("sqlite") / "weft.db"
    migrate(sqlite_url(file))
    return file


@pytest.fixture
def sqlite_database_url(_migrated_sqlite_file: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite database: `weft.db` in the test's folder."""
    from weft.db.urls import sqlite_url

    return sqlite_url(Path(shutil.copy(_migrated_sqlite_file, tmp_path / "weft.db")))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database: the test runs on both kinds."""
    name = "sqlite_database_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of the Redis server of this process's tests, without a database's number."""
    named = os.environ.get("WEFT_TEST_REDIS_URL")
    if named:
        yield named.rstrip("/")
        return
    server = _or_skip("Redis", RedisServer)
    server.start()
    yield server.url
    server.close()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """A Redis database that holds nothing."""
    import redis

    # processes that test beside each other may share a server that was named
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    url = f"{redis_server}/{worker}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def _or_skip(what: str, create: Callable[[], ServerT]) -> ServerT:
    try:
        return create()
    except ServerMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{what} cannot be tested: {error}")
        _not_run.add(f"{what}: {error}")
        pytest.skip(str(error))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes tells the one that reports."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["servers_not_run"] = sorted(_not_run)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """pytest-xdist: one of the processes has ended."""
    _not_run.update(getattr(node, "workeroutput", {}).get("servers_not_run", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was not tested is said where nobody overlooks it."""
    for what in sorted(_not_run):
        terminalreporter.write_line(f"NOT TESTED on {what}", red=True, bold=True)


def _database_name(url: str) -> str:
    return url.rsplit("/", 1)[1]
