"""Kills a process that meters at one await after another, and looks at what the next one finds.

    python -m tests.usage.crash DATABASE_URL FOLDER NUM_RUNS SEED

On SQLite the statements of requests run without an await: there it is before one after another.
Requests begin and finish beside each other, are added up, and told to a file. The database and the
file are the same for all runs. Each run is a process of its own, forked from this one, which has no
threads; so is the start after it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from sqlalchemy import Dialect, text
from tests.registry.crash import Killing, in_child, run
from tests.usage.conftest import Meter, open_meter

from weft.db.database import Database
from weft.db.prepared import Compiled, Prepared
from weft.messages import Usage
from weft.usage import dispatch
from weft.usage.dispatch import Dispatcher
from weft.usage.models import Replica
from weft.usage.rollups import roll_up
from weft.usage.service import UsageRecorder
from weft.usage.sinks import FileSink
from weft.usage.verification import verify

NUM_REQUESTS = 4
# this one is refused by the engine
REFUSED = 3
BUDGET_PICO = 10**9


class Files:
    """What outlives a killed process: its notes, and what was delivered."""

    def __init__(self, folder: Path) -> None:
        self.tenant = folder / "tenant"
        self.notes = folder / "notes"
        self.num_stops = folder / "num_stops"
        self.told = folder / "usage.jsonl"

    def note(self, what: str, event_id: str) -> None:
        """One write: it is there or it is not."""
        fd = os.open(self.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{what} {event_id}\n".encode())
        os.close(fd)

    def noted(self, what: str) -> set[str]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return {line.split()[1] for line in lines if line.split()[0] == what}


async def prepare(url: str, files: Files) -> None:
    meter = await open_meter(url)
    await meter.set_price()
    await meter.set_budget(BUDGET_PICO)
    files.tenant.write_text(meter.tenant_id)
    await meter.database.close()


def opened(url: str, files: Files) -> tuple[Meter, UsageRecorder, Dispatcher]:
    meter = Meter(Database(url), files.tenant.read_text())
    dispatcher = Dispatcher(meter.database, {"file": FileSink(files.told)})
    return meter, UsageRecorder(meter.database, ["file"]), dispatcher


_compile = Prepared.on


def stop_and_compile(statement: Prepared, dialect: Dialect) -> Compiled:
    """Asked for right before each statement."""
    Killing.stop()
    return _compile(statement, dialect)


async def play(url: str, files: Files, number: int) -> None:
    meter, recorder, dispatcher = opened(url, files)
    await recorder.start()

    async def one(index: int) -> None:
        req = meter.request(f"r{number}-{index}")
        await recorder.begin([req])
        files.note("begun", req.event_id)
        if index == REFUSED:
            await recorder.forget([req])
            files.note("forgotten", req.event_id)
            return
        await recorder.finish(req, Usage(10, index), "stop", "ok")
        files.note("finished", req.event_id)

    await asyncio.gather(*(one(index) for index in range(NUM_REQUESTS)))
    await roll_up(meter.database)
    await dispatcher.deliver_due()
    await recorder.beat()
    await recorder.sweep()
    await recorder.close()
    await meter.database.close()
    files.num_stops.write_text(str(Killing.num_stops))


async def restart(url: str, files: Files) -> None:
    """The next start, and what holds after it."""
    meter, recorder, dispatcher = opened(url, files)
    await wait_until_alone(meter.database)
    await recorder.start()
    await roll_up(meter.database)
    await dispatcher.deliver_due()
    await recorder.close()
    await check(meter, files)
    await meter.database.close()


async def wait_until_alone(database: Database) -> None:
    """PostgreSQL goes on for a moment with what a killed process had sent."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    while not database.is_sqlite:
        async with database.reading() as session:
            connection = await session.connection()
            if (await connection.execute(others)).scalar_one() == 0:
                return
        await asyncio.sleep(0.005)


async def check(meter: Meter, files: Files) -> None:
    events = {event.event_id: event for event in await meter.events()}
    assert await meter.num_pending() == 0
    assert files.noted("begun") - files.noted("forgotten") <= {
        *events,
        *(id_ for id_ in files.noted("begun") if id_.endswith(f"-{REFUSED}")),
    }, "a request has no event"
    assert not files.noted("forgotten") & set(events), "a refused request has an event"
    for event_id in files.noted("finished"):
        event, index = events[event_id], int(event_id.rpartition("-")[2])
        assert (event.outcome, event.completion_tokens) == ("ok", index), "usage was lost"
    for event in events.values():
        assert event.outcome in ("ok", "lost")
        assert event.amount_pico == (0 if event.outcome == "lost" else 50 + 7 * event_index(event))
    spent = sum(event.amount_pico for event in events.values())
    assert await meter.budget() == (spent, 0)
    assert await meter.balances() == (
        {"tenant:acme:receivable": spent, "revenue:tokens": -spent} if spent else {}
    )
    told = Counter(json.loads(line)["id"] for line in files.told.read_text().splitlines())
    assert set(told) == set(events), "what was told is not what there is"
    for result in await verify(meter.database):
        assert result.is_clean, result
    sequences = Counter(event.replica_id for event in events.values())
    for replica in await meter.all(Replica):
        assert isinstance(replica, Replica)
        assert replica.closed_at_ms is not None
        assert replica.last_seq == replica.rolled_up_seq == sequences[replica.id]


def event_index(event: object) -> int:
    return int(str(getattr(event, "event_id", "")).rpartition("-")[2])


def kill_at(url: str, files: Files, number: int, point: int) -> bool:
    """False when all was over before `point`."""
    with patch.object(Prepared, "on", stop_and_compile):
        code = in_child(lambda: run(play(url, files, number), point))
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"run {number} failed with {code} before point {point}")
    succeed(lambda: run(restart(url, files)), f"killed at {point}, the next start found the above")
    return code != 0


def succeed(work: Callable[[], None], failure: str) -> None:
    if in_child(work) != 0:
        raise SystemExit(failure)


def main(url: str, folder: Path, num_runs: int, seed: int) -> None:
    # a claim of a dead process is over at once
    dispatch.CLAIM_S = 0.0
    files = Files(folder)
    succeed(lambda: run(prepare(url, files)), "the database could not be prepared")
    assert not kill_at(url, files, 0, -1)
    num_stops = int(files.num_stops.read_text())
    choose = random.Random(seed)
    num_killed = sum(
        kill_at(url, files, number, choose.randrange(num_stops))
        for number in range(1, num_runs + 1)
    )
    lost = len(files.noted("begun")) - len(files.noted("finished") | files.noted("forgotten"))
    print(num_stops, num_killed, lost)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
