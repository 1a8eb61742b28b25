"""`weft serve` with several workers on the demo base, over real PostgreSQL and Redis."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.conftest import Server, free_port

from weft.demo import BASE_DIR, BASE_NAME

if TYPE_CHECKING:
    from tests.stores import PostgresDatabases

START_TIMEOUT_S = 120.0


@dataclass
class Site(Server):
    """A supervisor, its engine and its workers."""

    environment: dict[str, str] = field(default_factory=dict)
    num_workers: int = 2
    probe_port: int = field(default_factory=free_port)

    @property
    def probes(self) -> str:
        return f"http://127.0.0.1:{self.probe_port}"

    @property
    def log(self) -> Path:
        return self.data_dir.parent / "server.log"

    def launch(self) -> None:
        command = [sys.executable, "-m", "weft.cli", "serve", "--base", str(BASE_DIR)]
        command += ["--base-name", BASE_NAME, "--data", str(self.data_dir), "--threads", "1"]
        command += ["--port", str(self.port), "--probe-port", str(self.probe_port)]
        command += ["--workers", str(self.num_workers), *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def start(self) -> None:
        """All workers answer when this returns."""
        self.launch()
        self.wait(lambda: "listening on" in self.log.read_text() and self.is_ready())

    def wait(self, is_so: Any, timeout_s: float = START_TIMEOUT_S) -> None:
        end = time.monotonic() + timeout_s
        while not is_so():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.probes}/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def pids(self, module: str) -> list[int]:
        """Of the supervisor's processes that run a module of `weft.server`."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [
            int(pid)
            for pid in children.split()
            if f"weft.server.{module}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def metric(self, name: str) -> float:
        """A counter's or a gauge's value, of all its labels together; 0 where it has none yet."""
        text = httpx2.get(f"{self.probes}/metrics").text
        families = text_string_to_metric_families(text)
        return sum(s.value for family in families for s in family.samples if s.name == name)


@pytest.fixture(scope="session")
def create_site() -> type[Site]:
    """`create_site(data_dir, options, environment=..., num_workers=...)`; the caller ends it."""
    return Site


@pytest.fixture(scope="module")
def stores(postgres: PostgresDatabases, redis_server: str) -> Iterator[dict[str, str]]:
    """The variables that name a fresh database and Redis, with a secret for all their servers."""
    url = postgres.create()
    yield {
        "WEFT_DATABASE_URL": url,
        "WEFT_REDIS_URL": f"{redis_server}/9",
        "WEFT_MASTER_SECRET": secrets.token_hex(32),
    }
    postgres.drop(url)


@pytest.fixture(scope="module")
def site(stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site") / "data", environment=stores)
    site.start()
    yield site
    assert site.process is not None
    if site.process.poll() is None:
        site.send(signal.SIGTERM)
