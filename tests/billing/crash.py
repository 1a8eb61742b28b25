"""Kills a process that closes a month and exports it at one await or another.

    python -m tests.billing.crash DATABASE_URL FOLDER NUM_RUNS SEED

The database and the folder are the same for all runs; each has a month of its own. Each run is a
process forked from this one, which has no threads; so is the start after it. Prints how many points
there are, and how many runs were killed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select
from tests.billing.books import Books
from tests.registry.crash import Killing, in_child, run

from weft.audit import SYSTEM
from weft.billing.closing import close_month
from weft.billing.exporting import Exporter, WantedExport
from weft.billing.models import ExportRow, InvoiceRow
from weft.billing.periods import Month
from weft.billing.verification import check_invoices, check_periods, create_export_check
from weft.db.database import Database
from weft.db.models import Lease
from weft.db.scope import unscoped
from weft.storage.objects import FolderTarget
from weft.tenancy.models import Project, Tenant

FIRST = Month(2001, 1)


def month_of(number: int) -> Month:
    months = FIRST.year * 12 + FIRST.month - 1 + number
    return Month(months // 12, months % 12 + 1)


async def prepare(url: str) -> None:
    database = Database(url)
    books = Books(database)
    await books.open()
    for name in ("acme", "globex"):
        await books.add_tenant(name)
    await database.close()


async def use(url: str, number: int) -> None:
    """Both tenants use something in the run's month."""
    database = Database(url)
    async with database.reading() as session:
        rows = (await session.scalars(unscoped(select(Project), "all that there are"))).all()
    projects = {row.tenant_id: row.id for row in rows}
    books = Books(database, projects, itertools.count(10 * number + 1))
    for tenant_id in projects:
        await books.use(tenant_id, month_of(number).start_at, (1_001, 24, 58))
    await database.close()


async def play(url: str, folder: Path, number: int) -> None:
    """Close the month and export every tenant's."""
    database = Database(url)
    await close_month(database, month_of(number), SYSTEM)
    exporter = Exporter(database, FolderTarget(folder))
    async with database.reading() as session:
        tenants = (await session.scalars(unscoped(select(Tenant), "all that there are"))).all()
    for tenant in tenants:
        await exporter.export(tenant, WantedExport(month_of(number), format="csv"))
    await database.close()


async def restart(url: str, folder: Path, number: int) -> None:
    """The same once more comes to one invoice and one export for each tenant."""
    check_seen(folder, number)
    database = Database(url)
    # whoever was killed has its lease for a while; a start need not wait for it here
    async with database.writing() as session:
        for lease in (await session.scalars(unscoped(select(Lease), "all that there are"))).all():
            lease.expires_at_ms = 0
    await database.close()
    await play(url, folder, number)
    check_seen(folder, number)
    await check(url, number)


def check_seen(folder: Path, number: int) -> None:
    """What a consumer sees, who reads manifests only, is whole."""
    for path in folder.rglob(f"billing_period={month_of(number)}/**/manifest.json"):
        for file in json.loads(path.read_bytes())["files"]:
            data = (path.parent / file["name"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]


async def check(url: str, number: int) -> None:
    database, name = Database(url), str(month_of(number))
    async with database.reading() as session:
        statement = select(InvoiceRow).where(InvoiceRow.month == name)
        invoices = (await session.scalars(unscoped(statement, "a test"))).all()
        exported = select(ExportRow).where(ExportRow.month == name)
        exports = (await session.scalars(unscoped(exported, "a test"))).all()
    await database.close()
    assert len({row.tenant_id for row in invoices}) == len(invoices) == 2
    assert [row.sequence for row in exports] == [1, 1]
    assert all(row.manifest_sha256 and row.is_final for row in exports)


async def check_all(url: str, folder: Path) -> None:
    """All months together: nothing differs from anything."""
    database = Database(url)
    async with database.reading() as session:
        for each in (check_invoices, check_periods, create_export_check(FolderTarget(folder))):
            result = await each(session)
            assert result.is_clean, result
    await database.close()


def succeed(work: Callable[[], None], failure: str) -> None:
    if in_child(work) != 0:
        raise SystemExit(failure)


def main(url: str, folder: Path, num_runs: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    succeed(lambda: run(prepare(url)), "the database could not be prepared")

    def count() -> None:
        run(play(url, folder, 0))
        (folder / "num_stops").write_text(str(Killing.num_stops))

    succeed(lambda: run(use(url, 0)), "nothing could be used")
    succeed(count, "the work itself failed")
    num_stops = int((folder / "num_stops").read_text())
    choose, num_killed = random.Random(seed), 0
    for number in range(1, num_runs + 1):
        point = choose.randrange(num_stops)
        succeed(lambda n=number: run(use(url, n)), "nothing could be used")  # type: ignore[misc]
        code = in_child(lambda n=number, p=point: run(play(url, folder, n), p))  # type: ignore[misc]
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"the work failed with {code} before point {point}")
        num_killed += code != 0
        succeed(
            lambda n=number: run(restart(url, folder, n)),  # type: ignore[misc]
            f"killed at {point}, the next start found the above",
        )
    succeed(lambda: run(check_all(url, folder)), "the months together do not add up")
    print(num_stops, num_killed)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
