"""Limits of subjects, and budgets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_2312"
down_revision = "2026_11_21_2310"
branch_labels = None
depends_on = None


def _int(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _create(table: str, last_of_subject: sa.Column[str], *columns: sa.Column[int]) -> None:
    """A table of one row per subject and `last_of_subject`; a base's belong to no tenant."""
    op.create_table(
        table,
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant_id", sa.String(64), nullable=True),
        sa.Column("subject_kind", sa.String(16), nullable=False),
        sa.Column("subject_id", sa.String(255), nullable=False),
        last_of_subject,
        *columns,
        _int("created_at"),
        _int("updated_at"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=f"fk_{table}_tenant_id_tenants"
        ),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
    )
    op.create_index(f"ix_{table}_tenant_id", table, ["tenant_id"])
    op.create_index(
        f"uq_{table}_subject_{last_of_subject.name}",
        table,
        ["subject_kind", "subject_id", last_of_subject.name],
        unique=True,
    )


def upgrade() -> None:
    _create(
        "limits",
        sa.Column("model", sa.String(255), nullable=False),
        _int("requests_per_minute", null=True),
        _int("tokens_per_minute", null=True),
        _int("max_running", null=True),
        _int("max_adapters", null=True),
        _int("max_versions", null=True),
        _int("max_stored_bytes", null=True),
    )
    _create(
        "budgets",
        sa.Column("period", sa.String(8), nullable=False),
        _int("limit_pico"),
        _int("spent_pico"),
        _int("held_pico"),
        _int("period_start"),
    )


def downgrade() -> None:
    for table in ("budgets", "limits"):
        op.drop_table(table)
