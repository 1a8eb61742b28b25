"""A tenant's invoices, for whoever administers it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from weft.billing.repository import BillingRepository
from weft.billing.rows import line_of
from weft.billing.schemas import InvoiceWire, invoice_to_wire
from weft.db.dependencies import PageDep, ReadSession
from weft.db.lists import ListOf
from weft.errors import NotFoundError
from weft.tenancy.auth import require_admin
from weft.tenancy.principal import TenantAdmin

router = APIRouter(prefix="/v1/organization/invoices", tags=["billing"])
Reader = Annotated[TenantAdmin, Depends(require_admin("billing:read"))]


@router.get("")
async def list_invoices(admin: Reader, session: ReadSession, page: PageDep) -> ListOf[InvoiceWire]:
    """By month."""
    found = await BillingRepository(session).list_invoices(admin, page)
    return ListOf[InvoiceWire].of(found, invoice_to_wire)


@router.get("/{invoice_id}")
async def get_invoice(admin: Reader, invoice_id: str, session: ReadSession) -> InvoiceWire:
    """With its lines."""
    repository = BillingRepository(session)
    row = await repository.find_invoice(invoice_id, admin)
    if row is None:
        raise NotFoundError(f"No invoice '{invoice_id}' exists.")
    return invoice_to_wire(row, [line_of(line) for line in await repository.list_lines(row)])
