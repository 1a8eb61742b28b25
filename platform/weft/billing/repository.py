"""Queries on periods, invoices and their charges, and on the usage that they are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.billing.charges import Charge, UsageHour, UsageKey
from weft.billing.models import (
    BilledCharge,
    BillingPeriod,
    InvoiceLineRow,
    InvoiceRow,
    IssuerProfile,
)
from weft.billing.periods import HOUR_S, Month
from weft.billing.rows import charge_of, charge_row
from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, TenantOwner, scoped, unscoped
from weft.tenancy.models import Project, Tenant
from weft.usage.models import UsageEvent
from weft.usage.money_models import LedgerEntry, LedgerTx, Price, PriceBook

_HOUR_MS = HOUR_S * 1000
_PERIODS = "a month is closed for all tenants"
_PRICES = "prices are the operator's"
_CHUNK = 5_000


class BillingRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(
        self,
        *rows: BillingPeriod | IssuerProfile | InvoiceRow | InvoiceLineRow | LedgerTx | LedgerEntry,
    ) -> None:
        self._session.add_all(rows)

    async def flush(self) -> None:
        await self._session.flush()

    # ---- usage ----

    async def list_hours(self, owner: Owner, start_at: int, end_at: int) -> list[UsageHour]:
        """The tenant's events of [start, end) by hour and all that a charge tells apart."""
        event = UsageEvent
        hour = (event.ended_at_ms - event.ended_at_ms % _HOUR_MS).label("hour")
        keys = (
            hour,
            event.project_id,
            event.api_key_id,
            event.base_model,
            event.adapter_id,
            event.adapter_version,
            event.adapter_digest,
            event.model,
            event.price_id,
        )
        statement = (
            select(
                *keys,
                func.count(event.event_id),
                func.sum(event.prompt_tokens),
                func.sum(event.cached_prompt_tokens),
                func.sum(event.completion_tokens),
                func.sum(event.amount_pico),
            )
            .where(event.ended_at_ms >= start_at * 1000, event.ended_at_ms < end_at * 1000)
            .group_by(*keys)
        )
        rows = await self._session.execute(scoped(statement, owner))
        hours = [
            UsageHour(
                UsageKey(
                    int(row[0]) // 1000,
                    row[1],
                    row[2],
                    row[3],
                    row[4] or "",
                    row[5] or 0,
                    row[6] or "",
                    row[7],
                    row[8] or "",
                ),
                *(int(number) for number in row[9:]),
            )
            for row in rows
        ]
        # in Python, where every database sorts text alike
        return sorted(hours, key=lambda found: found.key)

    async def count_tokens(self, owner: Owner, start_at: int, end_at: int) -> tuple[int, ...]:
        """(requests, input, cached input, output tokens, picodollars) of [start, end)."""
        event = UsageEvent
        statement = select(
            func.count(event.event_id),
            *(
                func.coalesce(func.sum(column), 0)
                for column in (
                    event.prompt_tokens - event.cached_prompt_tokens,
                    event.cached_prompt_tokens,
                    event.completion_tokens,
                    event.amount_pico,
                )
            ),
        ).where(event.ended_at_ms >= start_at * 1000, event.ended_at_ms < end_at * 1000)
        (row,) = await self._session.execute(scoped(statement, owner))
        return tuple(int(number) for number in row)

    async def has_events_recorded_after(
        self, owner: Owner, start_at: int, end_at: int, recorded_at: int
    ) -> bool:
        """Whether some of the events of [start, end) became known only then."""
        statement = (
            select(UsageEvent.event_id)
            .where(
                UsageEvent.ended_at_ms >= start_at * 1000,
                UsageEvent.ended_at_ms < end_at * 1000,
                UsageEvent.recorded_at_ms >= recorded_at * 1000,
            )
            .limit(1)
        )
        return await self._session.scalar(scoped(statement, owner)) is not None

    async def find_first_event_at(self) -> int | None:
        """When the first event of all ended, in Unix seconds."""
        statement = select(func.min(UsageEvent.ended_at_ms))
        first_ms = await self._session.scalar(unscoped(statement, _PERIODS))
        return None if first_ms is None else int(first_ms) // 1000

    async def find_last_event_at(self, owner: Owner, start_at: int, end_at: int) -> int | None:
        """When the tenant's last event of [start, end) ended."""
        statement = select(func.max(UsageEvent.ended_at_ms)).where(
            UsageEvent.ended_at_ms >= start_at * 1000, UsageEvent.ended_at_ms < end_at * 1000
        )
        last_ms = await self._session.scalar(scoped(statement, owner))
        return None if last_ms is None else int(last_ms) // 1000

    async def list_tenants(self) -> Sequence[Tenant]:
        """Deleted ones as well: they pay for what they used."""
        statement = select(Tenant).order_by(Tenant.id)
        return (await self._session.scalars(unscoped(statement, _PERIODS))).all()

    async def list_project_names(self, owner: Owner) -> dict[str, str]:
        rows = await self._session.execute(scoped(select(Project.id, Project.name), owner))
        return {project_id: name for project_id, name in rows}

    async def list_prices(self) -> Sequence[tuple[Price, int]]:
        """All that were ever published, each with when its book began to hold."""
        statement = (
            select(Price, PriceBook.effective_from)
            .join(PriceBook, PriceBook.id == Price.price_book_id)
            .order_by(PriceBook.effective_from, Price.id)
        )
        rows = await self._session.execute(unscoped(statement, _PRICES))
        return [(price, effective_from) for price, effective_from in rows]

    # ---- periods ----

    async def find_period(self, month: Month) -> BillingPeriod | None:
        statement = select(BillingPeriod).where(BillingPeriod.month == str(month))
        return await self._session.scalar(unscoped(statement, _PERIODS))

    async def list_periods(self) -> Sequence[BillingPeriod]:
        statement = select(BillingPeriod).order_by(BillingPeriod.month)
        return (await self._session.scalars(unscoped(statement, _PERIODS))).all()

    async def find_issuer(self) -> IssuerProfile | None:
        return await self._session.scalar(unscoped(select(IssuerProfile), "there is one operator"))

    # ---- invoices ----

    async def find_invoice(self, invoice_id: str, owner: Owner) -> InvoiceRow | None:
        statement = select(InvoiceRow).where(InvoiceRow.id == invoice_id)
        return await self._session.scalar(scoped(statement, owner))

    async def find_invoice_of(self, month: Month, owner: Owner) -> InvoiceRow | None:
        statement = select(InvoiceRow).where(InvoiceRow.month == str(month))
        return await self._session.scalar(scoped(statement, owner))

    async def list_invoices(self, owner: Owner, page: PageRequest) -> Page[InvoiceRow]:
        """By month: ids of one tenant sort so."""
        statement = page.apply(select(InvoiceRow), InvoiceRow.id)
        return Page.of((await self._session.scalars(scoped(statement, owner))).all(), page)

    async def list_invoice_ids(self, owner: Owner) -> Sequence[tuple[str, str]]:
        """(month, id) of each."""
        rows = await self._session.execute(scoped(select(InvoiceRow.month, InvoiceRow.id), owner))
        return [(month, invoice_id) for month, invoice_id in rows]

    async def list_all_invoices(self, month: Month | None = None) -> Sequence[InvoiceRow]:
        statement = select(InvoiceRow).order_by(InvoiceRow.month, InvoiceRow.tenant_id)
        if month is not None:
            statement = statement.where(InvoiceRow.month == str(month))
        reason = "the operator sees all invoices"
        return (await self._session.scalars(unscoped(statement, reason))).all()

    async def list_lines(self, invoice: InvoiceRow) -> Sequence[InvoiceLineRow]:
        statement = (
            select(InvoiceLineRow)
            .where(InvoiceLineRow.invoice_id == invoice.id)
            .order_by(InvoiceLineRow.number)
        )
        owner = TenantOwner(invoice.tenant_id)
        return (await self._session.scalars(scoped(statement, owner))).all()

    # ---- charges ----

    def add_charges(
        self, invoice: InvoiceRow, charges: Iterable[Charge], line_numbers: Iterable[int]
    ) -> None:
        self._session.add_all(
            charge_row(invoice, number, line_number, charge)
            for number, (charge, line_number) in enumerate(
                zip(charges, line_numbers, strict=True), 1
            )
        )

    async def list_billed(self, owner: Owner, start_at: int, end_at: int) -> list[Charge]:
        """All that was ever invoiced of the hours of [start, end), corrections as well."""
        statement = (
            select(BilledCharge)
            .where(BilledCharge.hour_at >= start_at, BilledCharge.hour_at < end_at)
            .order_by(BilledCharge.invoice_id, BilledCharge.number)
        )
        rows = await self._session.scalars(scoped(statement, owner))
        return [charge_of(row) for row in rows]

    async def count_billed(self, owner: Owner, start_at: int, end_at: int) -> tuple[int, int]:
        """(tokens, picodollars) that were ever invoiced of the hours of [start, end)."""
        charge = BilledCharge
        statement = select(
            func.coalesce(func.sum(charge.num_tokens), 0),
            func.coalesce(func.sum(charge.num_tokens * charge.rate), 0),
        ).where(charge.hour_at >= start_at, charge.hour_at < end_at)
        (row,) = await self._session.execute(scoped(statement, owner))
        return int(row[0]), int(row[1])

    async def sum_by_line(self, invoice: InvoiceRow) -> dict[int, tuple[int, int]]:
        """(tokens, picodollars) of the charges on each line."""
        charge = BilledCharge
        statement = (
            select(
                charge.line_number,
                func.sum(charge.num_tokens),
                func.sum(charge.num_tokens * charge.rate),
            )
            .where(charge.invoice_id == invoice.id)
            .group_by(charge.line_number)
        )
        rows = await self._session.execute(scoped(statement, TenantOwner(invoice.tenant_id)))
        return {int(row[0]): (int(row[1]), int(row[2])) for row in rows}

    async def find_rounding(self, invoice: InvoiceRow) -> int | None:
        """What the ledger has the tenant owe for the rounding of an invoice."""
        statement = select(LedgerEntry.amount_pico).where(
            LedgerEntry.tx_id == f"rounding:{invoice.id}",
            LedgerEntry.account == f"tenant:{invoice.tenant_id}:receivable",
        )
        return await self._session.scalar(scoped(statement, TenantOwner(invoice.tenant_id)))

    async def stream_charges(self, invoice: InvoiceRow) -> AsyncIterator[tuple[Charge, int]]:
        """The invoice's charges in order, each with its line's number; a few at a time."""
        owner, last = TenantOwner(invoice.tenant_id), 0
        while True:
            statement = (
                select(BilledCharge)
                .where(BilledCharge.invoice_id == invoice.id, BilledCharge.number > last)
                .order_by(BilledCharge.number)
                .limit(_CHUNK)
            )
            rows = (await self._session.scalars(scoped(statement, owner))).all()
            for row in rows:
                yield charge_of(row), row.line_number
            if len(rows) < _CHUNK:
                return
            last = rows[-1].number
