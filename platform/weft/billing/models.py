"""Tables of billing: periods, invoices with their lines and charges, exports, and what was sent on.

Amounts are picodollars, rates picodollars per token. What an invoice consists of is written once.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned, TenantOwned


class BillingPeriod(PlatformOwned, Base):
    """A month that was closed, or is being closed: the same one for all tenants."""

    __tablename__ = "billing_periods"

    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    created_at: Mapped[int]
    closed_at: Mapped[int | None]


class IssuerProfile(PlatformOwned, Base):
    """Who sends the invoices: the operator, in one row."""

    __tablename__ = "issuer_profiles"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    profile: Mapped[dict[str, Any]] = mapped_column(JSON)
    updated_at: Mapped[int]


class InvoiceRow(TenantOwned, Base):
    """What a tenant owes for a month. Never changed; `issuer` and `tenant_name` are of then."""

    __tablename__ = "invoices"
    __table_args__ = (Index("uq_invoices_tenant_id_month", "tenant_id", "month", unique=True),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    month: Mapped[str] = mapped_column(String(7), index=True)
    tenant_name: Mapped[str] = mapped_column(String(128))
    issuer: Mapped[dict[str, Any]] = mapped_column(JSON)
    issued_at: Mapped[int]
    due_at: Mapped[int]
    payable_pico: Mapped[int]


class InvoiceLineRow(TenantOwned, Base):
    """A line; of the adjustment, what tells whose usage it is stays empty."""

    __tablename__ = "invoice_lines"

    invoice_id: Mapped[str] = mapped_column(String(80), ForeignKey("invoices.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    charge_month: Mapped[str | None] = mapped_column(String(7))
    project_id: Mapped[str | None] = mapped_column(String(64))
    base_model: Mapped[str | None] = mapped_column(String(255))
    price_id: Mapped[str | None] = mapped_column(String(64))
    meter: Mapped[str | None] = mapped_column(String(16))
    num_requests: Mapped[int]
    num_tokens: Mapped[int]
    exact_pico: Mapped[int]
    billed_pico: Mapped[int]


class BilledCharge(TenantOwned, Base):
    """An hour's tokens of one meter as they were invoiced; negative where they were taken back."""

    __tablename__ = "billed_charges"
    __table_args__ = (Index("ix_billed_charges_tenant_id_hour_at", "tenant_id", "hour_at"),)

    invoice_id: Mapped[str] = mapped_column(String(80), ForeignKey("invoices.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    line_number: Mapped[int]
    hour_at: Mapped[int]
    project_id: Mapped[str] = mapped_column(String(64))
    api_key_id: Mapped[str] = mapped_column(String(64))
    base_model: Mapped[str] = mapped_column(String(255))
    adapter_id: Mapped[str] = mapped_column(String(64))
    adapter_version: Mapped[int]
    adapter_digest: Mapped[str] = mapped_column(String(80))
    model: Mapped[str] = mapped_column(String(255))
    price_id: Mapped[str] = mapped_column(String(64))
    meter: Mapped[str] = mapped_column(String(16))
    num_requests: Mapped[int]
    num_tokens: Mapped[int]
    rate: Mapped[int]
    list_rate: Mapped[int]
    is_correction: Mapped[bool]


class ExportRow(TenantOwned, Base):
    """An export of one dataset. It is there for others once it has a `manifest_sha256`.

    `target` is where it was written; `sequence` counts the exports that replace each other there.
    """

    __tablename__ = "exports"
    __table_args__ = (Index("uq_exports_series", "target", "series", "sequence", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    target: Mapped[str] = mapped_column(String(255))
    series: Mapped[str] = mapped_column(String(255))
    sequence: Mapped[int]
    month: Mapped[str] = mapped_column(String(7))
    dataset: Mapped[str] = mapped_column(String(32))
    focus_version: Mapped[str] = mapped_column(String(8))
    format: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int]
    is_final: Mapped[bool | None]
    num_rows: Mapped[int | None]
    billed_pico: Mapped[int | None]
    content_sha256: Mapped[str | None] = mapped_column(String(64))
    manifest_sha256: Mapped[str | None] = mapped_column(String(64))


class BillingCustomer(TenantOwned, Base):
    """What a tenant is called where its usage is sent on to, by the name of that place."""

    __tablename__ = "billing_customers"

    sink: Mapped[str] = mapped_column(String(16), primary_key=True)
    customer_id: Mapped[str] = mapped_column(String(128), primary_key=True)


class MeterEventRow(TenantOwned, Base):
    """An hour's tokens of one meter as Stripe is told, written before it is: the value of an
    identifier never changes. `state` is pending, sent, cancelled, refused or unknown.
    """

    __tablename__ = "meter_events"
    __table_args__ = (
        Index("ix_meter_events_tenant_id_hour_at", "tenant_id", "hour_at"),
        Index("ix_meter_events_state", "state"),
    )

    identifier: Mapped[str] = mapped_column(String(100), primary_key=True)
    hour_at: Mapped[int]
    meter: Mapped[str] = mapped_column(String(16))
    num_tokens: Mapped[int]
    timestamp_at: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int]
    sent_at: Mapped[int | None]
    problem: Mapped[str | None] = mapped_column(String(255))
