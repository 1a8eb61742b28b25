"""Usage events a second: admissions and ends of requests, written as a server writes them.

Each request is held in the ledger and in a budget and then settled: two transactions, which commit
to the disk. Without an engine and without HTTP; `in flight` is how many requests wait for the
database at a time, `none` has neither price nor budget. The databases take turns, each measured
several times after a warm-up; the figures are medians, beside them the slowest and the fastest.
At the end all books are verified.

    python -m benchmarks.usage_events [--postgres-url URL] [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from sqlalchemy import text

from weft.db.database import Database
from weft.db.ids import create_id
from weft.db.schema import prepare
from weft.db.urls import sqlite_url
from weft.limits.models import Budget
from weft.messages import Usage
from weft.tenancy.service import create_tenant
from weft.usage.money_models import Price, PriceBook
from weft.usage.service import MeteredRequest, UsageRecorder
from weft.usage.verification import verify

IN_FLIGHT = (1, 16, 64)
NUM_EVENTS = 500  # of one measurement
TOTAL_PICO = 10**15
PAID, FREE = "price and budget", "none"
PACKAGES = ("sqlalchemy", "aiosqlite", "psycopg")


async def set_up(database: Database, base: str) -> str:
    """A tenant with a budget, and a price of the base; returns the tenant's id."""
    async with database.writing() as session:
        tenant = await create_tenant(session, create_id("bench"))
        book = PriceBook(id=create_id("book"), name="list", effective_from=0, created_at=0)
        session.add(book)
        await session.flush()
        session.add(
            Price(
                id=create_id("price"), price_book_id=book.id, base_model=base, input_rate=500_000,
                cached_input_rate=250_000, output_rate=1_500_000,
            )
        )  # fmt: skip
        session.add(
            Budget(
                id=create_id("budget"), tenant_id=tenant.id, subject_kind="tenant",
                subject_id=tenant.id, period="total", limit_pico=TOTAL_PICO, spent_pico=0,
                held_pico=0, period_start=0, created_at=0, updated_at=0,
            )
        )  # fmt: skip
    return tenant.id


async def measure(database: Database, tenant_id: str, base: str, num_in_flight: int) -> float:
    """Events a second; each is one admission and one end."""
    recorder = UsageRecorder(database)
    await recorder.start(is_alone=False)
    left = iter(range(NUM_EVENTS))

    async def work() -> None:
        for _ in left:
            req = MeteredRequest(
                create_id("req"), tenant_id, "proj", "key", base, base,
                num_prompt_tokens=100, max_completion_tokens=200,
            )  # fmt: skip
            await recorder.begin([req])
            await recorder.finish(req, Usage(100, 50, 16), "stop", "ok")

    started_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(num_in_flight)))
    rate = NUM_EVENTS / (time.perf_counter() - started_s)
    await recorder.close()
    return rate


@dataclass(frozen=True)
class Subject:
    """A database under measurement, and its tenant by what requests pay."""

    name: str
    database: Database
    tenants: Mapping[str, tuple[str, str]]

    @classmethod
    async def open(cls, name: str, url: str) -> Subject:
        prepare(url)
        database = Database(url)
        priced = create_id("base")
        tenant_id = await set_up(database, priced)
        return cls(
            name, database, {PAID: (tenant_id, priced), FREE: (tenant_id, create_id("base"))}
        )

    async def versions(self) -> dict[str, str]:
        """Of the database, and how it commits."""
        if self.database.is_sqlite:
            queries = {"version": "SELECT sqlite_version()", "synchronous": "PRAGMA synchronous"}
        else:
            names = ("server_version", "fsync", "synchronous_commit")
            queries = {name: f"SHOW {name}" for name in names}
        async with self.database.reading() as session:
            connection = await session.connection()
            return {
                name: str(await connection.scalar(text(query))) for name, query in queries.items()
            }

    async def close(self) -> None:
        """Nothing that was measured was recorded wrongly."""
        unclean = [result for result in await verify(self.database) if not result.is_clean]
        if unclean:
            raise SystemExit(f"{self.name}: {unclean}")
        await self.database.close()


async def run(urls: Mapping[str, str], num_repeats: int) -> dict[str, Any]:
    """Rates by database, what requests pay and how many are in flight; versions."""
    subjects = [await Subject.open(name, url) for name, url in urls.items()]
    rates: dict[str, dict[str, dict[str, list[float]]]] = {}
    for repeat in range(num_repeats + 1):  # the first one warms up
        for count in IN_FLIGHT:
            for subject in subjects:
                for what, (tenant_id, base) in subject.tenants.items():
                    rate = await measure(subject.database, tenant_id, base, count)
                    if repeat:
                        by_count = rates.setdefault(subject.name, {}).setdefault(what, {})
                        by_count.setdefault(f"{count} in flight", []).append(rate)
    versions = {subject.name: await subject.versions() for subject in subjects}
    for subject in subjects:
        await subject.close()
    return {"events_per_s": rates, "databases": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres-url", help="a database that may be written to")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json-dir", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        urls = {"SQLite": sqlite_url(Path(folder) / "weft.db")}
        if arguments.postgres_url:
            urls["PostgreSQL"] = arguments.postgres_url
        found = asyncio.run(run(urls, arguments.repeats))
    rows = [
        (name, what, *(_summary(rates) for rates in counts.values()))
        for name, by_pay in found["events_per_s"].items()
        for what, counts in by_pay.items()
    ]
    columns = ("database", "requests pay", *(f"{count} in flight" for count in IN_FLIGHT))
    report.print_table("Usage events a second", columns, rows)
    packages = {name: version(name) for name in PACKAGES}
    own = {"num_events": NUM_EVENTS, "num_repeats": arguments.repeats, "packages": packages}
    report.print_figures("Versions", {**found["databases"], "Python": packages})
    result = {"settings": report.settings(**own), **found}
    report.write_json(arguments.json_dir, "usage_events", result)


def _summary(rates: Sequence[float]) -> str:
    return f"{median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


if __name__ == "__main__":
    main()
