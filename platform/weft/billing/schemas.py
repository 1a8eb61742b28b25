"""Invoices, periods, exports and the issuer on the wire. Money is exact: dollars as text."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from weft.billing.closing import ClosedPeriod
from weft.billing.files import FileFormat
from weft.billing.focus.columns import Dataset, FocusVersion
from weft.billing.focus.cost_and_usage import METER_NAMES
from weft.billing.focus.invoices import describe_line
from weft.billing.invoicing import Line
from weft.billing.models import BillingPeriod, ExportRow, InvoiceRow
from weft.billing.money import decimal_text, to_dollars
from weft.billing.periods import Month
from weft.billing.statement import Issuer
from weft.db.lists import ListItem

# no control characters, and nothing that a spreadsheet takes for a formula
_NAME = r"^[A-Za-z0-9][^\x00-\x1f\x7f]{0,126}$"


class IssuerBody(BaseModel):
    """Who sends the invoices. Those that are issued keep what was true then."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=_NAME)
    service_name: str = Field(default="LoRA Inference", pattern=_NAME)
    host_name: str | None = Field(default=None, pattern=_NAME)
    payment_days: int = Field(default=30, ge=0, le=365)
    region_id: str | None = Field(default=None, pattern=_NAME)
    region_name: str | None = Field(default=None, pattern=_NAME)

    def to_issuer(self) -> Issuer:
        return Issuer(**self.model_dump())


class IssuerWire(IssuerBody):
    object: Literal["billing_issuer"] = "billing_issuer"


class PeriodWire(ListItem):
    """A month: open until it is closed."""

    object: Literal["billing_period"] = "billing_period"
    start_time: int
    end_time: int
    status: Literal["open", "closed"]
    closed_at: int | None


class ClosedPeriodWire(PeriodWire):
    """`payable` is of all invoices together."""

    num_invoices: int
    payable: str
    currency: Literal["usd"] = "usd"


class LineWire(BaseModel):
    """`amount` is in whole cents, `exact_amount` what it was rounded from."""

    id: str
    kind: Literal["usage", "correction", "adjustment"]
    description: str
    project_id: str | None
    meter: str | None
    price_id: str | None
    charge_period: str | None
    num_requests: int
    num_tokens: int
    amount: str
    exact_amount: str


class InvoiceWire(ListItem):
    """What a tenant owes for a month. `lines` only where one invoice is asked for."""

    object: Literal["invoice"] = "invoice"
    tenant_id: str
    billing_period: str
    issuer: str
    issued_at: int
    due_at: int
    payable: str
    currency: Literal["usd"] = "usd"
    lines: list[LineWire] | None = None


class ExportCreate(BaseModel):
    """What is exported; `tenant` is an id or a name."""

    model_config = ConfigDict(extra="forbid")
    tenant: str = Field(min_length=1, max_length=128)
    billing_period: str = Field(pattern=r"^\d{4}-\d{2}$")
    dataset: Dataset = "cost_and_usage"
    focus_version: FocusVersion = "1.4"
    format: FileFormat = "parquet"


class ExportWire(ListItem):
    """An export that consumers may read at `location`; `is_new` where this request made it."""

    object: Literal["billing_export"] = "billing_export"
    tenant_id: str
    billing_period: str
    dataset: str
    focus_version: str
    format: str
    sequence: int
    is_final: bool
    num_rows: int
    billed: str
    currency: Literal["usd"] = "usd"
    location: str
    manifest_sha256: str
    created_at: int
    is_new: bool | None = None


def dollars(amount_pico: int) -> str:
    """Exact."""
    return decimal_text(to_dollars(amount_pico))


def cents(amount_pico: int) -> str:
    """Of whole cents, with both digits."""
    return f"{to_dollars(amount_pico):.2f}"


def issuer_to_wire(issuer: Issuer) -> IssuerWire:
    return IssuerWire(
        name=issuer.name,
        service_name=issuer.service_name,
        host_name=issuer.host_name,
        payment_days=issuer.payment_days,
        region_id=issuer.region_id,
        region_name=issuer.region_name,
    )


def period_to_wire(row: BillingPeriod) -> PeriodWire:
    month = Month.parse(row.month)
    return PeriodWire(
        id=row.month,
        start_time=month.start_at,
        end_time=month.end_at,
        status="open" if row.closed_at is None else "closed",
        closed_at=row.closed_at,
    )


def closed_to_wire(closed: ClosedPeriod) -> ClosedPeriodWire:
    return ClosedPeriodWire(
        id=str(closed.month),
        start_time=closed.month.start_at,
        end_time=closed.month.end_at,
        status="closed",
        closed_at=closed.closed_at,
        num_invoices=closed.num_invoices,
        payable=cents(closed.payable_pico),
    )


def invoice_to_wire(row: InvoiceRow, lines: list[Line] | None = None) -> InvoiceWire:
    return InvoiceWire(
        id=row.id,
        tenant_id=row.tenant_id,
        billing_period=row.month,
        issuer=str(row.issuer["name"]),
        issued_at=row.issued_at,
        due_at=row.due_at,
        payable=cents(row.payable_pico),
        lines=None if lines is None else [_line_to_wire(row, line) for line in lines],
    )


def _line_to_wire(row: InvoiceRow, line: Line) -> LineWire:
    grain = line.grain
    return LineWire(
        id=f"{row.id}-{line.number}",
        kind=line.kind,
        description=describe_line(line),
        project_id=None if grain is None else grain.project_id,
        meter=None if grain is None else METER_NAMES[grain.meter],
        price_id=None if grain is None else grain.price_id or None,
        charge_period=None if grain is None else str(grain.month),
        num_requests=line.num_requests,
        num_tokens=line.num_tokens,
        amount=cents(line.billed_pico),
        exact_amount=dollars(line.exact_pico),
    )


def export_to_wire(row: ExportRow, is_new: bool | None = None) -> ExportWire:
    """Of one that is finished."""
    assert row.is_final is not None
    assert row.manifest_sha256 is not None
    return ExportWire(
        id=row.id,
        tenant_id=row.tenant_id,
        billing_period=row.month,
        dataset=row.dataset,
        focus_version=row.focus_version,
        format=row.format,
        sequence=row.sequence,
        is_final=row.is_final,
        num_rows=row.num_rows or 0,
        billed=dollars(row.billed_pico or 0),
        location=f"{row.target}/{row.series}/export={row.sequence:06d}",
        manifest_sha256=row.manifest_sha256,
        created_at=row.created_at,
        is_new=is_new,
    )
