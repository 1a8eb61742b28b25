"""Real PostgreSQL and Redis servers on loopback, which tests may stop and start again.

Imports no more than the standard library until a server is started.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 60.0
# where distributions keep what is not on the PATH
_POSTGRES_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/*/bin")
# stops the server and removes its folder when the process that started both is gone, however it
# ended: then the other end of the pipe is closed
_WATCH = (
    'read _; kill -9 "$1" 2>/dev/null; while kill -0 "$1" 2>/dev/null; do sleep 0.1; done; '
    'rm -rf "$2"'
)


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

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have it hang within the block: its connections stay open and nothing comes."""
        self._signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        """To the process that starts others first, so that none is missed."""
        assert self._process is not None, "the server runs"
        own = self._process.pid
        self._process.send_signal(number)
        listed = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], text=True)
        for pid, parent in (map(int, line.split()) for line in listed.splitlines()):
            if parent == own:
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(pid, number)

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
            psycopg.connect(libpq_url(self.url), connect_timeout=2).close()
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


def libpq_url(url: str) -> str:
    """SQLAlchemy's URL as PostgreSQL's own library reads it."""
    return url.replace("postgresql+psycopg://", "postgresql://")
