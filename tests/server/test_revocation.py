"""A key that is revoked under load is refused by every worker, whoever revoked it (attack 6)."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from weft.demo import BASE_NAME

if TYPE_CHECKING:
    from tests.server.conftest import Site

# that no worker is without a connection is certain but for one in 2 ** 23
NUM_CONNECTIONS = 24
BOUND_S = 5.0
# the latter once the address has sent too many bad keys
REFUSED = {401, 429}


@dataclass
class Asked:
    """What one connection was answered: when it asked, and the status."""

    worker: int
    answers: list[tuple[float, int]] = field(default_factory=list)


class Load:
    """Connections that ask without a pause, each at one worker."""

    def __init__(self, site: Site, key: str) -> None:
        self._site, self._key = site, key
        self._is_over = threading.Event()
        self.connections: list[Asked] = []

    @contextmanager
    def running(self) -> Iterator[Load]:
        with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
            asking = [pool.submit(self._ask) for _ in range(NUM_CONNECTIONS)]
            try:
                yield self
            finally:
                self._is_over.set()
        for each in asking:
            each.result()

    def _ask(self) -> None:
        body = json.dumps({"model": BASE_NAME, "prompt": "a b c", "max_tokens": 2})
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        with closing(HTTPConnection("127.0.0.1", self._site.port, timeout=60)) as connection:
            connection.connect()
            asked = Asked(self._worker_of(connection.sock.getsockname()[1]))
            self.connections.append(asked)
            while not self._is_over.is_set():
                started_s = time.monotonic()
                connection.request("POST", "/v1/completions", body, headers)
                answer = connection.getresponse()
                answer.read()
                asked.answers.append((started_s, answer.status))
                if answer.status != 200:
                    time.sleep(0.05)  # as one that backs off

    def _worker_of(self, port: int) -> int:
        """The process that has the other end of a connection."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            inode = _inode_of(self._site.port, port)
            for pid in self._site.pids("worker_process"):
                if f"socket:[{inode}]" in _opened_by(pid):
                    return pid
            time.sleep(0.05)
        raise AssertionError("no worker has taken the connection")


def _inode_of(local_port: int, remote_port: int) -> str:
    """Of a connection over the loopback, as the kernel numbers it; empty where there is none."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = [int(address.rpartition(":")[2], 16) for address in fields[1:3]]
        if ports == [local_port, remote_port]:
            return fields[9]
    return ""


def _opened_by(pid: int) -> set[str]:
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(file))
    return found


@pytest.mark.verify
def test_a_key_that_is_revoked_under_load_is_refused_by_every_worker_within_seconds(
    site: Site,
) -> None:
    key = site.create_tenant("revoked")
    with Load(site, key).running() as load:
        site.wait(lambda: sum(len(a.answers) > 3 for a in load.connections) == NUM_CONNECTIONS)
        assert {asked.worker for asked in load.connections} == set(site.pids("worker_process"))
        with site.admin() as http:
            key_id = key.split("_")[2]
            http.delete(f"/admin/v1/tenants/revoked/keys/{key_id}").raise_for_status()
        revoked_s = time.monotonic()
        time.sleep(BOUND_S + 1)
    for asked in load.connections:
        statuses = [status for _, status in asked.answers]
        num_served = sum(status == 200 for status in statuses)
        assert set(statuses[:num_served]) == {200}, "it came back"
        assert set(statuses[num_served:]) <= REFUSED
        late = {status for at, status in asked.answers if at > revoked_s + BOUND_S}
        assert late
        assert late <= REFUSED
