"""FOCUS's Invoice Detail and Billing Period, both new in 1.4.

A record of Invoice Detail is a line of the invoice. BilledCost is the line's exact cost, which is
the sum of its rows in Cost and Usage; x_RoundedCost is what the invoice shows for it. Both add up
to what is payable. Lines of no cost are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from weft.billing.focus.columns import BILLING_PERIOD, INVOICE_DETAIL
from weft.billing.focus.cost_and_usage import METER_NAMES, sku_id, sku_price_id
from weft.billing.invoicing import Line
from weft.billing.money import CURRENCY, shifted, to_dollars
from weft.billing.periods import Month
from weft.billing.statement import IssuedInvoice, Statement
from weft.billing.tables import Cell, Table


@dataclass(frozen=True, slots=True)
class PeriodStatus:
    """A billing period as its row has it."""

    month: Month
    created_at: int
    updated_at: int
    is_closed: bool


def create_invoice_detail(statement: Statement) -> Table:
    """A row for each line; none before the invoice is issued."""
    names = tuple(column.name for column in INVOICE_DETAIL)
    invoice = statement.invoice

    def rows() -> Iterator[tuple[Cell, ...]]:
        for line in () if invoice is None else invoice.lines:
            assert invoice is not None
            cells = _line_cells(statement, invoice, line)
            yield tuple(cells[name] for name in names)

    return Table(INVOICE_DETAIL, rows())


def create_billing_periods(issuer_name: str, periods: Iterable[PeriodStatus]) -> Table:
    """A row for each period."""

    def rows() -> Iterator[tuple[Cell, ...]]:
        for period in periods:
            yield (
                period.created_at,
                period.month.end_at,
                period.updated_at,
                period.month.start_at,
                "Closed" if period.is_closed else "Open",
                issuer_name,
            )

    return Table(BILLING_PERIOD, rows())


def describe_line(line: Line) -> str:
    """The line in words, as the invoice shows it."""
    if line.grain is None:
        return "Rounding of each line to whole cents"
    said = f"{line.grain.base_model} {METER_NAMES[line.grain.meter].lower()}"
    return said if line.kind == "usage" else f"{said}, correction for {line.grain.month}"


def _line_cells(statement: Statement, invoice: IssuedInvoice, line: Line) -> dict[str, Cell]:
    is_usage = line.grain is not None
    adjusted = invoice.id
    if line.grain is not None and line.kind == "correction":
        adjusted = statement.invoice_ids.get(line.grain.month, invoice.id)
    return {
        "BilledCost": to_dollars(line.exact_pico),
        "BillingAccountId": statement.tenant_id,
        "BillingCurrency": CURRENCY,
        "BillingPeriodEnd": statement.month.end_at,
        "BillingPeriodStart": statement.month.start_at,
        "ChargeCategory": "Usage" if is_usage else "Adjustment",
        "InvoiceDetailCreated": invoice.issued_at,
        "InvoiceDetailDescription": describe_line(line),
        "InvoiceDetailGrain": _grain(line),
        "InvoiceDetailId": invoice.line_id(line.number),
        "InvoiceDetailLastUpdated": invoice.issued_at,
        "InvoiceId": invoice.id,
        "InvoiceIssueDate": invoice.issued_at,
        "InvoiceIssueStatus": "Issued",
        "InvoiceIssuerName": statement.issuer.name,
        "PaymentCurrency": CURRENCY,
        "PaymentDueDate": invoice.due_at,
        "PaymentTerms": statement.issuer.payment_terms,
        "ReferenceInvoiceId": adjusted,
        "x_ChargeClass": "Correction" if line.kind == "correction" else None,
        "x_ConsumedQuantity": shifted(line.num_tokens, 0) if is_usage else None,
        "x_RequestCount": shifted(line.num_requests, 0) if is_usage else None,
        "x_RoundedCost": to_dollars(line.billed_pico),
    }


def _grain(line: Line) -> str | None:
    if line.grain is None:
        return None
    grain = line.grain
    return json.dumps(
        {
            "SkuId": sku_id(grain.base_model, grain.meter),
            "SkuMeter": METER_NAMES[grain.meter],
            "SkuPriceId": sku_price_id(grain.price_id, grain.meter),
            "SubAccountId": grain.project_id,
            "x_ChargeMonth": str(grain.month),
        }
    )
