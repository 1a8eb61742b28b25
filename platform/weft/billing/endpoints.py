"""The operator's routes of billing: the issuer, periods, invoices and exports."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from weft.billing import closing, service
from weft.billing.export_repository import ExportRepository
from weft.billing.exporting import Exporter, WantedExport
from weft.billing.repository import BillingRepository
from weft.billing.schemas import (
    ClosedPeriodWire,
    ExportCreate,
    ExportWire,
    InvoiceWire,
    IssuerBody,
    IssuerWire,
    PeriodWire,
    closed_to_wire,
    export_to_wire,
    invoice_to_wire,
    issuer_to_wire,
    period_to_wire,
)
from weft.db.dependencies import DatabaseDep, PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.db.paging import Page
from weft.idempotency.routes import HeldKey, KeyedRoute
from weft.tenancy.acting import actor_of
from weft.tenancy.auth import require_operator
from weft.tenancy.principal import Operator

router = APIRouter(prefix="/admin/v1", tags=["billing"], route_class=KeyedRoute)
Reader = Annotated[Operator, Depends(require_operator("billing:read"))]
Writer = Annotated[Operator, Depends(require_operator("billing:write"))]
MonthQuery = Annotated[str, Query(pattern=r"^\d{4}-\d{2}$")]


async def get_exporter(request: Request) -> Exporter:
    """The app's exporter."""
    exporter: Exporter = request.app.state.exporter
    return exporter


@router.get("/billing_issuer")
async def get_issuer(_operator: Reader, session: ReadSession) -> IssuerWire:
    return issuer_to_wire(await closing.read_issuer(session))


@router.put("/billing_issuer")
async def set_issuer(operator: Writer, body: IssuerBody, session: WriteSession) -> IssuerWire:
    """Who sends the invoices from now on."""
    await service.set_issuer(session, body.to_issuer(), actor_of(operator))
    return issuer_to_wire(body.to_issuer())


@router.get("/billing_periods")
async def list_periods(_operator: Reader, session: ReadSession) -> ListOf[PeriodWire]:
    """Those that were closed, or are being closed."""
    rows = await BillingRepository(session).list_periods()
    return ListOf[PeriodWire].of(Page(rows, False), period_to_wire)


@router.post("/billing_periods/{period}:close")
async def close_period(
    operator: Writer, period: str, database: DatabaseDep, _keyed: HeldKey
) -> ClosedPeriodWire:
    """Every tenant's usage of the month becomes an invoice. Again: the same answer."""
    month = service.parse_month(period)
    return closed_to_wire(await closing.close_month(database, month, actor_of(operator)))


@router.get("/invoices")
async def list_invoices(
    _operator: Reader, session: ReadSession, billing_period: MonthQuery
) -> ListOf[InvoiceWire]:
    """All of a month."""
    month = service.parse_month(billing_period)
    rows = await BillingRepository(session).list_all_invoices(month)
    return ListOf[InvoiceWire].of(Page(rows, False), invoice_to_wire)


@router.post("/exports", status_code=201, responses={200: {"model": ExportWire}})
async def create_export(
    operator: Writer,
    body: ExportCreate,
    database: DatabaseDep,
    exporter: Annotated[Exporter, Depends(get_exporter)],
    response: Response,
    _keyed: HeldKey,
) -> ExportWire:
    """201 with a new export; 200 with the last one where nothing has changed since."""
    wanted = WantedExport(
        service.parse_month(body.billing_period), body.dataset, body.focus_version, body.format
    )
    row, is_new = await service.create_export(
        database, exporter, body.tenant, wanted, actor_of(operator)
    )
    response.status_code = 201 if is_new else 200
    return export_to_wire(row, is_new)


@router.get("/exports")
async def list_exports(
    _operator: Reader, session: ReadSession, page: PageDep
) -> ListOf[ExportWire]:
    """Those that are finished."""
    found = await ExportRepository(session).list_page(page)
    return ListOf[ExportWire].of(found, export_to_wire)
