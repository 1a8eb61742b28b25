"""A database of each kind, a tenant on it, and the requests of that tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from weft.db.base import Base
from weft.db.database import Database
from weft.db.scope import unscoped
from weft.limits.models import Budget
from weft.tenancy import service
from weft.usage.models import UsageEvent, UsagePending
from weft.usage.money_models import LedgerEntry, Price, PriceBook
from weft.usage.service import MeteredRequest, UsageRecorder

# of a prompt of 10 tokens and 20 more: 10 * 5 + 20 * 7
WORST_CASE_PICO = 190


@dataclass(frozen=True)
class Meter:
    """A database, a tenant and what is in their tables."""

    database: Database
    tenant_id: str

    def request(self, event_id: str) -> MeteredRequest:
        return MeteredRequest(
            event_id, self.tenant_id, "proj", "key", "bot@v1", "tiny", "adp", 1, "sha", 10, 20
        )

    async def recorder(self, *sinks: str, is_alone: bool = True) -> UsageRecorder:
        """One that has started."""
        recorder = UsageRecorder(self.database, sinks)
        await recorder.start(is_alone=is_alone)
        return recorder

    async def set_price(self, price_id: str = "price", *, base: str = "tiny", **rates: int) -> None:
        """A list price of the base, since the beginning of time."""
        rates = {"input_rate": 5, "cached_input_rate": 2, "output_rate": 7, **rates}
        book = PriceBook(id=f"book_{price_id}", name="list", effective_from=0, created_at=0)
        await self.add(book)
        await self.add(Price(id=price_id, price_book_id=book.id, base_model=base, **rates))

    async def set_budget(self, limit_pico: int) -> None:
        """Of the tenant, for all time."""
        await self.add(
            Budget(
                id="budget", tenant_id=self.tenant_id, subject_kind="tenant",
                subject_id=self.tenant_id, period="total", limit_pico=limit_pico, spent_pico=0,
                held_pico=0, period_start=0, created_at=0, updated_at=0,
            )
        )  # fmt: skip

    async def add(self, *rows: Base) -> None:
        async with self.database.writing() as session:
            session.add_all(rows)

    async def all(self, table: type[Base]) -> Sequence[Base]:
        async with self.database.reading() as session:
            found = await session.scalars(unscoped(select(table), "a test"))
            return found.all()

    async def events(self) -> list[UsageEvent]:
        rows = [row for row in await self.all(UsageEvent) if isinstance(row, UsageEvent)]
        return sorted(rows, key=lambda event: event.event_id)

    async def num_pending(self) -> int:
        return len(await self.all(UsagePending))

    async def budget(self) -> tuple[int, int]:
        """(spent, held)."""
        (row,) = await self.all(Budget)
        assert isinstance(row, Budget)
        return row.spent_pico, row.held_pico

    async def balances(self) -> dict[str, int]:
        """Accounts that are not at 0."""
        sums: dict[str, int] = {}
        for row in await self.all(LedgerEntry):
            assert isinstance(row, LedgerEntry)
            account = row.account.replace(self.tenant_id, "acme")
            sums[account] = sums.get(account, 0) + row.amount_pico
        return {account: amount for account, amount in sums.items() if amount}


async def open_meter(url: str) -> Meter:
    database = Database(url)
    async with database.writing() as session:
        return Meter(database, (await service.create_tenant(session, "acme")).id)


@pytest.fixture
async def meter(database_url: str) -> AsyncIterator[Meter]:
    """On SQLite and on PostgreSQL."""
    meter = await open_meter(database_url)
    yield meter
    await meter.database.close()
