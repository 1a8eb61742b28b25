"""Leases: which process does a job that one of them does at a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_2320"
down_revision = "2026_11_21_2312"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def downgrade() -> None:
    op.drop_table("leases")
