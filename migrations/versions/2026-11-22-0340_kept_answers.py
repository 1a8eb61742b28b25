"""Answers that are given again to a request with the same idempotency key, of all routes.

They take the place of the keys of uploads, which were good for a day: a request that was sent
before and is repeated after this migration, or its undoing, is taken for a new one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_0340"
down_revision = "2026_11_22_0230"
branch_labels = None
depends_on = None

ANSWERS, KEYS = "kept_answers", "idempotency_keys"


def upgrade() -> None:
    op.drop_table(KEYS)
    op.create_table(
        ANSWERS,
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{ANSWERS}"),
    )
    op.create_index(f"ix_{ANSWERS}_created_at", ANSWERS, ["created_at"])


def downgrade() -> None:
    op.drop_table(ANSWERS)
    op.create_table(
        KEYS,
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("version_id", sa.String(64), nullable=False),
        sa.Column("status_code", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=f"fk_{KEYS}_tenant_id_tenants"),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name=f"fk_{KEYS}_version_id_adapter_versions"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=f"pk_{KEYS}"),
    )
    for column in ("tenant_id", "created_at"):
        op.create_index(f"ix_{KEYS}_{column}", KEYS, [column])
