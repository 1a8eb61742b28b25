"""Kills a whole server at random moments while it is asked, and looks at what the next one makes of
it.

    python -m tests.server.crash FOLDER NUM_KILLS SEED

The server's database is SQLite in the folder, or what WEFT_DATABASE_URL names; the same for all
kills. Each server is what `weft serve` runs, in a process forked from this one, which has imported
everything and has no threads; so is each look at the database. Prints how many answers came to
their end, how many events there are, and how many of them were lost.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx2
from tests.e2e.conftest import free_port
from tests.server.callers import ADAPTER, Answer, Callers, check_answers, take_for_dead
from tests.usage.conftest import Meter
from tests.usage.crash import wait_until_alone

# imported once, and not by each server that is started
import weft.app
import weft.engine.build
import weft.engine.worker
import weft.telemetry.logs  # noqa: F401
import weft_kernels.native.ops  # noqa: F401
from weft.cli import app as commands
from weft.db.database import Database
from weft.db.urls import database_url
from weft.demo import ADAPTERS_DIR, BASE_DIR, BASE_NAME
from weft.settings import database_file
from weft.usage import dispatch

START_TIMEOUT_S = 60.0
# a server is killed at most so long after at most so many answers
LAST_KILL_S, LAST_KILL_ANSWERS = 0.1, 25
# of so many kills one is while a server starts
KILLS_PER_START = 5
_PR_SET_PDEATHSIG = 1


def fork(work: Callable[[], object], output: Path) -> int:
    """A process that does `work` and writes what it prints into a file; it ends with this one."""
    assert threading.active_count() == 1
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(child: int) -> int:
    """Its exit code; negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Site:
    """A data folder, the server on it, and what its callers were told."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.data = folder, folder / "data"
        self.log, self.told = folder / "server.log", folder / "usage.jsonl"
        url = os.environ.get("WEFT_DATABASE_URL")
        self.database_url = database_url(url, database_file(self.data))
        self.choose = random.Random(seed)
        self.answers: list[Answer] = []
        self._start_s = 1.0

    def command(self, *words: str) -> Any:
        """What `weft` answers to these words. SystemExit where it fails."""
        output = self.folder / "output"
        whole = [*words, "--data", str(self.data), "--json"]
        if wait_for(fork(lambda: commands(whole), output)) != 0:
            self._fail(f"weft {' '.join(words)}:\n{output.read_text()}")
        return json.loads(output.read_text())

    def look(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `work` on the database. SystemExit where it fails."""
        output = self.folder / "output"
        if wait_for(fork(lambda: asyncio.run(work()), output)) != 0:
            self._fail(output.read_text())

    def _fail(self, what: str) -> None:
        log = self.log.read_text() if self.log.exists() else ""
        raise SystemExit(f"{what}\n\nthe server said:\n{log[-8000:]}")

    def prepare(self) -> None:
        """A tenant with a key, an adapter, a price and a budget."""
        self.tenant_id = self.command("tenant", "create", "acme")["id"]
        self.key = self.command("key", "create", "acme")["value"]
        rates = ("--input", "5", "--cached-input", "2", "--output", "7")
        self.command("price", "set", BASE_NAME, *rates)
        self.command("budget", "create", "1000000", "--tenant", "acme", "--period", "total")
        self.start()
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=60) as http:
            body = {"name": ADAPTER, "base_model": BASE_NAME}
            http.post("/v1/adapters", json=body).raise_for_status()
            names = ("adapter_config.json", "adapter_model.safetensors")
            files = {name: (name, (ADAPTERS_DIR / ADAPTER / name).read_bytes()) for name in names}
            http.post(f"/v1/adapters/{ADAPTER}/versions", files=files).raise_for_status()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        self.port = free_port()
        words = [
            "serve", "--base", str(BASE_DIR), "--base-name", BASE_NAME, "--port", str(self.port),
            "--threads", "1", "--kv-mib", "32", "--adapter-mib", "32",
            "--usage-sink", f"file=file:{self.told}", "--data", str(self.data),
        ]  # fmt: skip
        self.pid = fork(lambda: commands(words), self.log)

    def start(self) -> None:
        """Returns when requests are answered."""
        began_s = time.monotonic()
        self.launch()
        with httpx2.Client(base_url=self.url) as http:
            while not _is_ready(http):
                has_ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
                if has_ended or time.monotonic() > began_s + START_TIMEOUT_S:
                    self._fail("the server did not start")
                time.sleep(0.01)
        self._start_s = time.monotonic() - began_s

    def end(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
        code = wait_for(self.pid)
        if code != (-number if number == signal.SIGKILL else 0):
            self._fail(f"the server ended with {code}")

    def kill_at_start(self) -> None:
        self.launch()
        time.sleep(self.choose.uniform(0.0, self._start_s))
        self.end(signal.SIGKILL)

    def kill_under_load(self) -> None:
        # of their own: how much they choose is a matter of time
        callers = Callers(self.url, self.key, random.Random(self.choose.random()))

        async def kill() -> None:
            await callers.wait_for(self.choose.randrange(LAST_KILL_ANSWERS + 1))
            await asyncio.sleep(self.choose.uniform(0.0, LAST_KILL_S))
            self.end(signal.SIGKILL)

        asyncio.run(callers.run(kill()))
        self.answers += callers.answers
        for answer in callers.answers:
            if answer.error:
                self._fail(f"a caller was told {answer.error}")

    def make_up(self) -> None:
        """On PostgreSQL a process is dead when it is silent; on SQLite when there is another."""

        async def work() -> None:
            database = Database(self.database_url)
            if not database.is_sqlite:
                await wait_until_alone(database)
                await take_for_dead(database, 0.0)
            await database.close()

        self.look(work)

    def check(self) -> None:
        async def work() -> None:
            meter = Meter(Database(self.database_url), self.tenant_id)
            await check_answers(meter, self.answers)
            await meter.database.close()

        self.look(work)
        self.command("billing", "verify")

    def check_told(self) -> tuple[int, int]:
        """Whoever is told of usage was told of each event. Returns how many there are, and how
        many of them were lost."""
        outcomes = self.folder / "outcomes"

        async def work() -> None:
            meter = Meter(Database(self.database_url), self.tenant_id)
            events = await meter.events()
            outcomes.write_text(json.dumps([event.outcome for event in events]))
            ids = {event.event_id for event in events}
            async with asyncio.timeout(START_TIMEOUT_S):
                while ids != {json.loads(line)["id"] for line in self.told.open()}:
                    await asyncio.sleep(0.1)
            await meter.database.close()

        self.look(work)
        found = json.loads(outcomes.read_text())
        return len(found), found.count("lost")


def _is_ready(http: httpx2.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def main(folder: Path, num_kills: int, seed: int) -> None:
    # a claim of a dead process is over at once
    dispatch.CLAIM_S = 0.0
    gc.freeze()  # or the first collection of each server copies all that it shares with this one
    site = Site(folder, seed)
    site.prepare()
    for number in range(1, num_kills + 1):
        if number % KILLS_PER_START == 0:
            site.end(signal.SIGKILL)
            site.make_up()
            site.kill_at_start()
        else:
            site.kill_under_load()
        site.make_up()
        site.start()
        site.check()
    num_events, num_lost = site.check_told()
    site.end(signal.SIGTERM)
    num_answered = sum(answer.tokens is not None for answer in site.answers)
    print(num_answered, num_events, num_lost)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
