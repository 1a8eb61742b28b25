"""Real PostgreSQL and Redis servers on loopback for the tests, started at need.

A server is started once per process of the test run, or named by WEFT_TEST_POSTGRES_URL or
WEFT_TEST_REDIS_URL. Where one can be had by neither way, its tests are skipped and the end of the
run says so; with CI=true they fail. Imports no more than the standard library until a fixture is
used: the engine's tests run on machines without the web's packages.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

START_TIMEOUT_S = 60.0
# where distributions keep what is not on the PATH
_POSTGRES_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/*/bin")
# stops the server and removes its folder when the process that started both is gone, however it
# ended: then the other end of the pipe is closed
_WATCH = (
    'read _; kill -9 "$1" 2>/dev/null; while kill -0 "$1" 2>/dev/null; do sleep 0.1; done; '
    'rm -rf "$2"'
)

_not_run: set[str] = set()


class ServerMissingError(Exception):
    """The server's programs are not on this machine."""


class LocalServer(ABC):
    """A server process with a folder of its own and a loopback port that it keeps."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="weft-test-"))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @property
    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """What runs the server in the foreground."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers."""

    @property
    def user(self) -> str | None:
        """Whom the server runs as; None: as this process."""
        return None

    def start(self) -> None:
        """Start it, or start it again; returns when it answers."""
        log_file = self.folder / "server.log"
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.command), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, **_as_user(self.user),
            )  # fmt: skip
        self._watch = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the server did not start:\n{log_file.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in good order; clients that are connected are cut off."""
        # SIGINT is PostgreSQL's fast shutdown, which does not wait for clients
        self._end(lambda process: process.send_signal(signal.SIGINT))

    def kill(self) -> None:
        """End it as a crash of the machine would."""
        self._end(lambda process: process.kill())

    def close(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def _end(self, send: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self._watch is not None:
            self._watch.kill()
            self._watch.communicate()
            self._watch = None
        if self._process is not None:
            send(self._process)
            self._process.wait(START_TIMEOUT_S)
            self._process = None


class PostgresServer(LocalServer):
    """PostgreSQL. It refuses to run as root, so there it runs as another user."""

    def __init__(self) -> None:
        self._programs = _postgres_programs()
        super().__init__()
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        self._data = self.folder / "data"
        done = subprocess.run(
            [
                self._programs / "initdb", "--pgdata", self._data, "--username", "weft",
                "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync",
            ],
            cwd=self.folder, capture_output=True, text=True, **_as_user(self.user),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    @property
    def user(self) -> str | None:
        if os.geteuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in known else "nobody"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://weft@127.0.0.1:{self.port}/postgres"

    @property
    def command(self) -> Sequence[str | Path]:
        # a commit is written to the operating system before it is answered, so that it outlives the
        # server's crash; the disk is not waited for, since the machine's crash is not tested
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": "200",
        }
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        return [self._programs / "postgres", "-D", self._data, *settings]

    def is_ready(self) -> bool:
        import psycopg

        try:
            psycopg.connect(_libpq(self.url), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class RedisServer(LocalServer):
    """Redis; it keeps nothing on disk."""

    def __init__(self) -> None:
        self._program = shutil.which("redis-server") or shutil.which("valkey-server")
        if self._program is None:
            raise ServerMissingError("redis-server is not installed")
        super().__init__()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def command(self) -> Sequence[str | Path]:
        assert self._program is not None
        return [
            self._program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "",
            "--appendonly", "no", "--dir", self.folder,
        ]  # fmt: skip

    def is_ready(self) -> bool:
        import redis

        with redis.Redis.from_url(self.url, retry=None) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


ServerT = TypeVar("ServerT", bound=LocalServer)


class PostgresDatabases:
    """Fresh databases on one PostgreSQL server, with this release's tables or empty."""

    def __init__(self, server_url: str) -> None:
        self.server_url = server_url
        self._template: str | None = None

    def create(self, *, is_empty: bool = False) -> str:
        """The URL of a new database: a copy of one that was migrated once, or without a table."""
        if is_empty:
            return self._create("template0")
        if self._template is None:
            from weft.db.schema import migrate

            self._template = self._create("template0")
            migrate(self._template)
        return self._create(self._template.rsplit("/", 1)[1])

    def drop(self, url: str) -> None:
        """Remove a database, cutting off whoever is connected."""
        self._execute(f"DROP DATABASE {url.rsplit('/', 1)[1]} WITH (FORCE)")

    def close(self) -> None:
        if self._template is not None:
            self.drop(self._template)

    def _create(self, template: str) -> str:
        name = f"weft_test_{secrets.token_hex(6)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"{self.server_url.rsplit('/', 1)[0]}/{name}"

    def _execute(self, statement: str) -> None:
        import psycopg

        # a name in a statement is one of `_create`'s
        with closing(psycopg.connect(_libpq(self.server_url), autocommit=True)) as connection:
            connection.execute(statement.encode())


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


def _postgres_programs() -> Path:
    """The folder of PostgreSQL's server programs."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    for pattern in _POSTGRES_FOLDERS:
        folders += sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise ServerMissingError("initdb and postgres are not installed")


def _as_user(user: str | None) -> dict[str, Any]:
    """subprocess's arguments to run as `user`."""
    if user is None:
        return {"user": None}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def _free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _libpq(url: str) -> str:
    """SQLAlchemy's URL as PostgreSQL's own library reads it."""
    return url.replace("postgresql+psycopg://", "postgresql://")
