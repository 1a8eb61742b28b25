"""What does not add up is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from tests.billing.books import AUGUST, SEPTEMBER, Books

from weft.audit import SYSTEM
from weft.billing.closing import close_month
from weft.billing.exporting import Exporter, WantedExport
from weft.billing.models import BilledCharge, InvoiceLineRow, InvoiceRow
from weft.billing.verification import check_invoices, check_periods, create_export_check
from weft.db.scope import unscoped
from weft.storage.objects import FolderTarget
from weft.tenancy.models import Tenant
from weft.usage.models import UsageEvent
from weft.usage.money_models import LedgerEntry
from weft.usage.verification import CheckResult


@pytest.fixture
async def target(sqlite_books: Books, tmp_path: Path) -> FolderTarget:
    """Where August of one tenant was exported twice: while it was open, and closed."""
    books = sqlite_books
    acme = await books.add_tenant("acme")
    await books.use(acme, AUGUST.start_at, (1_000, 24, 58))
    async with books.database.reading() as session:
        tenant = await session.scalar(unscoped(select(Tenant), "a test"))
    assert tenant is not None
    found = FolderTarget(tmp_path / "exports")
    exporter = Exporter(books.database, found)
    await exporter.export(tenant, WantedExport(AUGUST, format="csv"))
    await close_month(books.database, AUGUST, SYSTEM)
    await exporter.export(tenant, WantedExport(AUGUST, format="csv"))
    return found


async def check(books: Books, target: FolderTarget) -> dict[str, CheckResult]:
    checks = (check_invoices, check_periods, create_export_check(target))
    async with books.database.reading() as session:
        results = [await each(session) for each in checks]
    return {result.name: result for result in results}


async def test_what_adds_up_is_clean(sqlite_books: Books, target: FolderTarget) -> None:
    found = await check(sqlite_books, target)
    assert {name: result.differences for name, result in found.items()} == {
        "invoices": (), "periods": (), "exports": ()
    }  # fmt: skip
    assert found["exports"].note.startswith("2 at ")


ALTERATIONS: dict[str, tuple[str, Callable[[], Any]]] = {
    "a charge": ("invoices", lambda: update(BilledCharge).values(num_tokens=1)),
    "a lost charge": ("invoices", lambda: delete(BilledCharge).where(BilledCharge.number == 1)),
    "a line": ("invoices", lambda: update(InvoiceLineRow).values(billed_pico=10**10)),
    "an invoice": ("invoices", lambda: update(InvoiceRow).values(payable_pico=10**10)),
    "the ledger": ("invoices", lambda: update(LedgerEntry).values(amount_pico=1)),
    "an event": ("periods", lambda: update(UsageEvent).values(completion_tokens=59)),
    "a lost event": ("periods", lambda: delete(UsageEvent)),
    "what is payable": ("exports", lambda: update(InvoiceRow).values(payable_pico=10**10)),
}


@pytest.mark.parametrize("what", ALTERATIONS)
async def test_an_altered_row_is_found(
    sqlite_books: Books, target: FolderTarget, what: str
) -> None:
    name, statement = ALTERATIONS[what]
    async with sqlite_books.database.writing() as session:
        await session.execute(unscoped(statement(), "a test"))
    assert (await check(sqlite_books, target))[name].differences


@pytest.mark.parametrize("name", ["manifest.json", "part-00000.csv"])
@pytest.mark.parametrize("is_lost", [True, False])
async def test_an_altered_file_is_found(
    sqlite_books: Books, target: FolderTarget, name: str, is_lost: bool
) -> None:
    (path,) = Path(target.url).rglob(f"export=000002/{name}")
    if is_lost:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")
    assert (await check(sqlite_books, target))["exports"].differences


async def test_late_usage_waits_for_the_next_month(
    sqlite_books: Books, target: FolderTarget
) -> None:
    async with sqlite_books.database.reading() as session:
        event = await session.scalar(unscoped(select(UsageEvent), "a test"))
    assert event is not None
    event_id = await sqlite_books.use(event.tenant_id, AUGUST.start_at + 9, (5, 0, 0))
    assert (await check(sqlite_books, target))["periods"].differences
    # recorded after the close, as late usage is
    late = update(UsageEvent).where(UsageEvent.event_id == event_id).values(recorded_at_ms=2**45)
    async with sqlite_books.database.writing() as session:
        await session.execute(unscoped(late, "a test"))
    waiting = (await check(sqlite_books, target))["periods"]
    assert (waiting.differences, waiting.note) == (
        (), "1 closed, corrections wait for 1 of tenants' months"
    )  # fmt: skip
    await close_month(sqlite_books.database, SEPTEMBER, SYSTEM)
    assert "wait for 0" in (await check(sqlite_books, target))["periods"].note
