"""Rows of lines and charges, from values and back."""

from __future__ import annotations

from weft.billing.charges import METERS, Charge, UsageKey
from weft.billing.invoicing import Line, LineGrain
from weft.billing.models import BilledCharge, InvoiceLineRow, InvoiceRow
from weft.billing.periods import Month


def charge_of(row: BilledCharge) -> Charge:
    """The value that the row keeps."""
    key = UsageKey(**{name: getattr(row, name) for name in UsageKey.__slots__})
    return Charge(
        key,
        row.meter,  # type: ignore[arg-type]  # only meters are ever written
        row.num_requests,
        row.num_tokens,
        row.rate,
        row.list_rate,
        row.is_correction,
    )


def charge_row(invoice: InvoiceRow, number: int, line_number: int, charge: Charge) -> BilledCharge:
    return BilledCharge(
        **{name: getattr(charge.key, name) for name in UsageKey.__slots__},
        invoice_id=invoice.id,
        tenant_id=invoice.tenant_id,
        number=number,
        line_number=line_number,
        meter=charge.meter,
        num_requests=charge.num_requests,
        num_tokens=charge.num_tokens,
        rate=charge.rate,
        list_rate=charge.list_rate,
        is_correction=charge.is_correction,
    )


def line_row(invoice: InvoiceRow, line: Line) -> InvoiceLineRow:
    grain = line.grain
    return InvoiceLineRow(
        invoice_id=invoice.id,
        tenant_id=invoice.tenant_id,
        number=line.number,
        kind=line.kind,
        charge_month=None if grain is None else str(grain.month),
        project_id=None if grain is None else grain.project_id,
        base_model=None if grain is None else grain.base_model,
        price_id=None if grain is None else grain.price_id,
        meter=None if grain is None else grain.meter,
        num_requests=line.num_requests,
        num_tokens=line.num_tokens,
        exact_pico=line.exact_pico,
        billed_pico=line.billed_pico,
    )


def line_of(row: InvoiceLineRow) -> Line:
    """The value that the row keeps."""
    grain = None
    if row.kind != "adjustment":
        assert row.charge_month is not None
        assert row.project_id is not None
        assert row.base_model is not None
        assert row.price_id is not None
        index = [str(meter) for meter in METERS].index(str(row.meter))
        month = Month.parse(row.charge_month)
        grain = LineGrain(month, row.project_id, row.base_model, row.price_id, index)
    return Line(
        row.number,
        row.kind,  # type: ignore[arg-type]  # only kinds are ever written
        grain,
        row.num_requests,
        row.num_tokens,
        row.exact_pico,
        row.billed_pico,
    )
