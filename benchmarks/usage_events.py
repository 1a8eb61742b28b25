"""Usage events a second: admissions and ends of requests, written as a server writes them.

Each request is held in the ledger and in a budget and then settled: two transactions, which commit
to the disk. Without an engine and without HTTP; `in flight` is how many requests wait for the
database at a time, `none` has neither price nor budget.

    python -m benchmarks.usage_events [--postgres-url URL] [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks import report

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
NUM_EVENTS = 500
TOTAL_PICO = 10**15


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


async def run(url: str) -> dict[str, dict[str, float]]:
    """Rates by what requests pay and how many are in flight."""
    prepare(url)
    database = Database(url)
    priced = create_id("base")
    tenant_id = await set_up(database, priced)
    rates = {
        what: {
            f"{count} in flight": await measure(database, tenant_id, base, count)
            for count in IN_FLIGHT
        }
        for what, base in (("price and budget", priced), ("none", "free"))
    }
    unclean = [result for result in await verify(database) if not result.is_clean]
    assert unclean == [], unclean
    await database.close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgres-url", help="a database that may be written to")
    parser.add_argument("--json-dir", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        urls = {"SQLite": sqlite_url(Path(folder) / "weft.db")}
        if arguments.postgres_url:
            urls["PostgreSQL"] = arguments.postgres_url
        rates = {name: asyncio.run(run(url)) for name, url in urls.items()}
    rows = [
        (name, what, *counts.values()) for name, of in rates.items() for what, counts in of.items()
    ]
    columns = ("database", "requests pay", *(f"{count} in flight" for count in IN_FLIGHT))
    report.print_table("Usage events a second", columns, rows)
    result = {"settings": report.settings(num_events=NUM_EVENTS), "events_per_s": rates}
    report.write_json(arguments.json_dir, "usage_events", result)


if __name__ == "__main__":
    main()
