"""A tenant's month: three projects' hours, prices, and the statement that comes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from tests.billing.books import Books
from tests.billing.month import NOVEMBER, RATES, create_hour

from weft.billing.charges import Charge, UsageHour, charges_of
from weft.billing.invoicing import create_invoice
from weft.billing.periods import HOUR_S, Month
from weft.billing.statement import IssuedInvoice, Issuer, Statement
from weft.db.database import Database


@pytest.fixture
def hours() -> list[UsageHour]:
    return [
        create_hour(0, (1_120, 1_024, 58)),
        create_hour(14, (999_999, 0, 1)),
        create_hour(14, (7, 0, 3), adapter="", price="price_list"),
        create_hour(700, (12_345, 5, 678), project="proj_2"),
    ]


@pytest.fixture
def charges(hours: list[UsageHour]) -> list[Charge]:
    return list(charges_of(hours, RATES))


@pytest.fixture
def create_statement() -> Callable[..., Statement]:
    """(charges, is_final=True) -> the statement, with its invoice."""

    def create(charges: list[Charge], *, is_final: bool = True) -> Statement:
        invoice = create_invoice(charges)
        at = NOVEMBER.end_at + 49 * HOUR_S
        issued = IssuedInvoice(
            "inv_2026-11_tnt_a", at, at + 30 * 86_400, invoice.payable_pico, invoice.lines
        )
        numbers = invoice.line_numbers if is_final else (None,) * len(charges)
        return Statement(
            tenant_id="tnt_a",
            tenant_name="acme, inc",
            month=NOVEMBER,
            issuer=Issuer("Weft AI", host_name="Some Cloud", region_id="eu-1"),
            invoice=issued if is_final else None,
            charges=list(zip(charges, numbers, strict=True)),
            watermark_at=at,
            is_final=is_final,
            project_names={"proj_1": "default"},
            invoice_ids={Month(2026, 10): "inv_2026-10_tnt_a"},
        )

    return create


async def _open_books(url: str) -> AsyncIterator[Books]:
    database = Database(url)
    found = Books(database)
    await found.open()
    yield found
    await database.close()


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    """On both databases."""
    async for found in _open_books(database_url):
        yield found


@pytest.fixture
async def sqlite_books(sqlite_database_url: str) -> AsyncIterator[Books]:
    """Where one database is as good as the other."""
    async for found in _open_books(sqlite_database_url):
        yield found
