"""Billing periods, invoices with their lines and charges, exports, and what was sent on."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_2335"
down_revision = "2026_11_21_2325"
branch_labels = None
depends_on = None


def _text(name: str, length: int, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=null)


def _int(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _bool(name: str, *, null: bool = False) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), nullable=null)


def _create(table: str, primary_key: tuple[str, ...], *parts: Any, is_owned: bool = True) -> None:
    owner: tuple[Any, ...] = ()
    if is_owned:
        name = f"fk_{table}_tenant_id_tenants"
        owner = (
            _text("tenant_id", 64),
            sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=name),
        )
    op.create_table(
        table, *parts, *owner, sa.PrimaryKeyConstraint(*primary_key, name=f"pk_{table}")
    )
    if is_owned:
        op.create_index(f"ix_{table}_tenant_id", table, ["tenant_id"])


def _of_invoice(table: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_invoice_id_invoices"
    return sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=name)


def upgrade() -> None:
    _create(
        "billing_periods",
        ("month",),
        _text("month", 7),
        _int("created_at"),
        _int("closed_at", null=True),
        is_owned=False,
    )
    _create(
        "issuer_profiles",
        ("id",),
        _text("id", 16),
        sa.Column("profile", sa.JSON(), nullable=False),
        _int("updated_at"),
        is_owned=False,
    )
    _create_invoices()
    _create_exports()
    _create_sent()


def _create_invoices() -> None:
    _create(
        "invoices",
        ("id",),
        _text("id", 80),
        _text("month", 7),
        _text("tenant_name", 128),
        sa.Column("issuer", sa.JSON(), nullable=False),
        _int("issued_at"),
        _int("due_at"),
        _int("payable_pico"),
    )
    op.create_index("ix_invoices_month", "invoices", ["month"])
    op.create_index("uq_invoices_tenant_id_month", "invoices", ["tenant_id", "month"], unique=True)
    _create(
        "invoice_lines",
        ("invoice_id", "number"),
        _text("invoice_id", 80),
        _int("number"),
        _text("kind", 16),
        _text("charge_month", 7, null=True),
        _text("project_id", 64, null=True),
        _text("base_model", 255, null=True),
        _text("price_id", 64, null=True),
        _text("meter", 16, null=True),
        _int("num_requests"),
        _int("num_tokens"),
        _int("exact_pico"),
        _int("billed_pico"),
        _of_invoice("invoice_lines"),
    )
    _create(
        "billed_charges",
        ("invoice_id", "number"),
        _text("invoice_id", 80),
        _int("number"),
        _int("line_number"),
        _int("hour_at"),
        _text("project_id", 64),
        _text("api_key_id", 64),
        _text("base_model", 255),
        _text("adapter_id", 64),
        _int("adapter_version"),
        _text("adapter_digest", 80),
        _text("model", 255),
        _text("price_id", 64),
        _text("meter", 16),
        _int("num_requests"),
        _int("num_tokens"),
        _int("rate"),
        _int("list_rate"),
        _bool("is_correction"),
        _of_invoice("billed_charges"),
    )
    op.create_index(
        "ix_billed_charges_tenant_id_hour_at", "billed_charges", ["tenant_id", "hour_at"]
    )


def _create_exports() -> None:
    _create(
        "exports",
        ("id",),
        _text("id", 64),
        _text("target", 255),
        _text("series", 255),
        _int("sequence"),
        _text("month", 7),
        _text("dataset", 32),
        _text("focus_version", 8),
        _text("format", 16),
        _int("created_at"),
        _bool("is_final", null=True),
        _int("num_rows", null=True),
        _int("billed_pico", null=True),
        _text("content_sha256", 64, null=True),
        _text("manifest_sha256", 64, null=True),
    )
    op.create_index("uq_exports_series", "exports", ["target", "series", "sequence"], unique=True)


def _create_sent() -> None:
    _create(
        "billing_customers",
        ("sink", "customer_id"),
        _text("sink", 16),
        _text("customer_id", 128),
    )
    _create(
        "meter_events",
        ("identifier",),
        _text("identifier", 100),
        _int("hour_at"),
        _text("meter", 16),
        _int("num_tokens"),
        _int("timestamp_at"),
        _text("state", 16),
        _int("created_at"),
        _int("sent_at", null=True),
        _text("problem", 255, null=True),
    )
    op.create_index("ix_meter_events_tenant_id_hour_at", "meter_events", ["tenant_id", "hour_at"])
    op.create_index("ix_meter_events_state", "meter_events", ["state"])


def downgrade() -> None:
    for table in (
        "meter_events",
        "billing_customers",
        "exports",
        "billed_charges",
        "invoice_lines",
        "invoices",
        "issuer_profiles",
        "billing_periods",
    ):
        op.drop_table(table)
