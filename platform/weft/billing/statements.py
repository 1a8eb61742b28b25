"""Reads a tenant's statement of a month: as it was invoiced, or as it stands while it is open."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from weft.billing.charges import Charge
from weft.billing.closing import read_charges, read_issuer
from weft.billing.focus.invoices import PeriodStatus
from weft.billing.models import InvoiceLineRow, InvoiceRow
from weft.billing.periods import Month
from weft.billing.repository import BillingRepository
from weft.billing.rows import line_of
from weft.billing.statement import IssuedInvoice, Issuer, Statement
from weft.db.scope import TenantOwner
from weft.tenancy.models import Tenant


async def read_statement(session: AsyncSession, tenant: Tenant, month: Month) -> Statement:
    """The invoice's charges where there is one; else what the month's usage comes to so far."""
    repository, owner = BillingRepository(session), TenantOwner(tenant.id)
    names = await repository.list_project_names(owner)
    row = await repository.find_invoice_of(month, owner)
    if row is not None:
        return await _invoiced(repository, row, month, names)
    period = await repository.find_period(month)
    is_closed = period is not None and period.closed_at is not None
    # a closed month without an invoice had no usage: what is told of it later is the next one's
    charges: list[Charge] = []
    if not is_closed:
        used, corrections = await read_charges(session, tenant.id, month)
        charges = used + corrections
    newest = await repository.find_last_event_at(owner, month.start_at, month.end_at)
    return Statement(
        tenant_id=tenant.id,
        tenant_name=tenant.name,
        month=month,
        issuer=await read_issuer(session),
        invoice=None,
        charges=[(charge, None) for charge in charges],
        watermark_at=(period.closed_at if period else None) or newest or month.start_at,
        is_final=is_closed,
        project_names=names,
    )


async def _invoiced(
    repository: BillingRepository, row: InvoiceRow, month: Month, names: dict[str, str]
) -> Statement:
    owner = TenantOwner(row.tenant_id)
    invoices = [(Month.parse(name), id_) for name, id_ in await repository.list_invoice_ids(owner)]
    lines = await repository.list_lines(row)
    charges = [pair async for pair in repository.stream_charges(row)]
    return Statement(
        tenant_id=row.tenant_id,
        tenant_name=row.tenant_name,
        month=month,
        issuer=Issuer(**row.issuer),
        invoice=issued_invoice(row, lines),
        charges=charges,
        watermark_at=row.issued_at,
        is_final=True,
        project_names=names,
        invoice_ids={other: id_ for other, id_ in invoices if other < month},
    )


def issued_invoice(row: InvoiceRow, lines: Sequence[InvoiceLineRow]) -> IssuedInvoice:
    """The value that the rows keep."""
    return IssuedInvoice(
        row.id, row.issued_at, row.due_at, row.payable_pico, tuple(line_of(line) for line in lines)
    )


async def read_periods(session: AsyncSession, month: Month) -> list[PeriodStatus]:
    """All periods up to `month`, from the first one that was closed or is `month` itself."""
    repository = BillingRepository(session)
    found = {Month.parse(row.month): row for row in await repository.list_periods()}
    periods = []
    for each in sorted({*found, month}):
        row = found.get(each)
        closed_at = None if row is None else row.closed_at
        if each <= month:
            # a period begins to be with its first second
            updated_at = closed_at or each.start_at
            periods.append(
                PeriodStatus(each, each.start_at, updated_at, is_closed=closed_at is not None)
            )
    return periods
