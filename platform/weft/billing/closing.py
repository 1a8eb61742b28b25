"""Closes months: every tenant's usage becomes an invoice that never changes again.

Each tenant's invoice is a transaction of its own, with its lines, its charges and what rounding
came to in the ledger; a close that was broken off goes on with the tenants that have none. What
becomes known of a closed month later is a correction on the next month's invoice: it is found by
comparing what was used with what was ever invoiced, so that nothing has to remember what was late.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Actor, Target, record
from weft.billing.charges import Charge, charges_of, corrections_of
from weft.billing.invoicing import Invoice, create_invoice
from weft.billing.models import BillingPeriod, InvoiceRow
from weft.billing.periods import GRACE_S, Month
from weft.billing.rates import rates_by_price
from weft.billing.repository import BillingRepository
from weft.billing.rows import line_row
from weft.billing.statement import DAY_S, Issuer
from weft.billing.tables import utc_text
from weft.db.database import Database
from weft.db.dialect import db_now_ms
from weft.db.scope import TenantOwner
from weft.errors import ConflictError
from weft.tenancy.models import Tenant
from weft.usage.money_models import LedgerEntry, LedgerTx

# how many closed months are looked at again; requests end, at the latest, minutes after they began
LOOKBACK_MONTHS = 3


@dataclass(frozen=True, slots=True)
class ClosedPeriod:
    """What closing a month came to. `is_new` is False where it was closed before."""

    month: Month
    closed_at: int
    num_invoices: int
    payable_pico: int
    is_new: bool


async def close_month(database: Database, month: Month, actor: Actor) -> ClosedPeriod:
    """Close it; closing it again changes nothing.

    ConflictError before its end and the grace after that, or while an earlier month is open.
    """
    if not await _begin(database, month):
        return await _closed(database, month, is_new=False)
    async with database.reading() as session:
        tenants = await BillingRepository(session).list_tenants()
    for tenant in tenants:
        await _invoice_tenant(database, tenant, month)
    async with database.writing() as session:
        repository = BillingRepository(session)
        period = await repository.find_period(month)
        assert period is not None, "it was begun"
        is_new = period.closed_at is None
        if is_new:
            period.closed_at = await db_now_ms(session) // 1000
            await repository.flush()
            invoices = await repository.list_all_invoices(month)
            changes = {"invoices": len(invoices), "payable_pico": _payable(invoices)}
            await record(session, actor, "billing_period.closed", Target(str(month)), changes)
    return await _closed(database, month, is_new=is_new)


async def read_charges(
    session: AsyncSession, tenant_id: str, month: Month
) -> tuple[list[Charge], list[Charge]]:
    """(what the tenant's usage of the month costs, what is to be corrected of months before)."""
    repository, owner = BillingRepository(session), TenantOwner(tenant_id)
    rates = rates_by_price(await repository.list_prices())
    hours = await repository.list_hours(owner, month.start_at, month.end_at)
    corrections: list[Charge] = []
    for earlier in await _closed_months(repository, month):
        start, end = earlier.start_at, earlier.end_at
        _, *used = await repository.count_tokens(owner, start, end)
        if (sum(used[:3]), used[3]) == await repository.count_billed(owner, start, end):
            continue
        billed = await repository.list_billed(owner, start, end)
        late = charges_of(await repository.list_hours(owner, start, end), rates)
        corrections += corrections_of(billed, late)
    return list(charges_of(hours, rates)), corrections


async def read_issuer(session: AsyncSession) -> Issuer:
    """As the operator has put it, or the defaults."""
    row = await BillingRepository(session).find_issuer()
    return Issuer() if row is None else Issuer(**row.profile)


async def _closed_months(repository: BillingRepository, month: Month) -> list[Month]:
    closed = [Month.parse(p.month) for p in await repository.list_periods() if p.closed_at]
    return [earlier for earlier in closed if earlier < month][-LOOKBACK_MONTHS:]


async def _begin(database: Database, month: Month) -> bool:
    """False where it is closed already."""
    async with database.writing() as session:
        repository = BillingRepository(session)
        period = await repository.find_period(month)
        if period is not None and period.closed_at is not None:
            return False
        now = await db_now_ms(session) // 1000
        may_close_at = month.end_at + GRACE_S
        if now < may_close_at:
            raise ConflictError(
                f"The period {month} can be closed from {utc_text(may_close_at)} on: its usage may "
                "be told until then.",
                code="period_open",
            )
        first = await _first_open(repository)
        if first is not None and first < month:
            raise ConflictError(
                f"The period {first} is still open; close it before {month}.", code="period_open"
            )
        if period is None:
            repository.add(BillingPeriod(month=str(month), created_at=now, closed_at=None))
    return True


async def _first_open(repository: BillingRepository) -> Month | None:
    """The month after the last that was closed, else the month of the first usage of all."""
    closed = [Month.parse(p.month) for p in await repository.list_periods() if p.closed_at]
    if closed:
        return max(closed).next
    first_at = await repository.find_first_event_at()
    return None if first_at is None else Month.at(first_at)


async def _invoice_tenant(database: Database, tenant: Tenant, month: Month) -> None:
    async with database.reading() as session:
        if await BillingRepository(session).find_invoice_of(month, TenantOwner(tenant.id)):
            return
        charges, corrections = await read_charges(session, tenant.id, month)
        issuer = await read_issuer(session)
    charges += corrections
    if not charges:
        return
    invoice = create_invoice(charges)
    async with database.writing() as session:
        repository = BillingRepository(session)
        if await repository.find_invoice_of(month, TenantOwner(tenant.id)):
            return  # another process was faster
        now_ms = await db_now_ms(session)
        row = _invoice_row(tenant, month, invoice, issuer, now_ms // 1000)
        repository.add(row)
        await repository.flush()
        repository.add(*(line_row(row, line) for line in invoice.lines))
        repository.add_charges(row, charges, invoice.line_numbers)
        await _post_rounding(repository, row, invoice.adjustment_pico, now_ms)
        await repository.flush()


def _invoice_row(
    tenant: Tenant, month: Month, invoice: Invoice, issuer: Issuer, issued_at: int
) -> InvoiceRow:
    return InvoiceRow(
        id=f"inv_{month}_{tenant.id}",
        tenant_id=tenant.id,
        month=str(month),
        tenant_name=tenant.name,
        issuer=dataclasses.asdict(issuer),
        issued_at=issued_at,
        due_at=issued_at + issuer.payment_days * DAY_S,
        payable_pico=invoice.payable_pico,
    )


async def _post_rounding(
    repository: BillingRepository, invoice: InvoiceRow, adjustment_pico: int, now_ms: int
) -> None:
    """What a tenant owes becomes whole cents: the difference is revenue of its own."""
    if not adjustment_pico:
        return
    tenant_id, tx_id = invoice.tenant_id, f"rounding:{invoice.id}"
    repository.add(
        LedgerTx(
            id=tx_id, tenant_id=tenant_id, kind="rounding", event_id=None, created_at_ms=now_ms
        )
    )
    await repository.flush()
    for account, amount_pico in (
        (f"tenant:{tenant_id}:receivable", adjustment_pico),
        ("revenue:rounding", -adjustment_pico),
    ):
        repository.add(
            LedgerEntry(tx_id=tx_id, tenant_id=tenant_id, account=account, amount_pico=amount_pico)
        )


async def _closed(database: Database, month: Month, *, is_new: bool) -> ClosedPeriod:
    async with database.reading() as session:
        repository = BillingRepository(session)
        period = await repository.find_period(month)
        assert period is not None, "it was closed"
        assert period.closed_at is not None, "it was closed"
        invoices = await repository.list_all_invoices(month)
    return ClosedPeriod(month, period.closed_at, len(invoices), _payable(invoices), is_new)


def _payable(invoices: Sequence[InvoiceRow]) -> int:
    return sum(row.payable_pico for row in invoices)
