"""The audit trail: entries in chains of hashes, and each chain's end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_2310"
down_revision = "2026_11_21_2000"
branch_labels = None
depends_on = None

ENTRIES, HEADS = "audit_entries", "audit_heads"


def _text(name: str, length: int, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=null)


def upgrade() -> None:
    op.create_table(
        ENTRIES,
        _text("id", 64),
        _text("chain", 64),
        sa.Column("number", sa.BigInteger(), nullable=False),
        _text("tenant_id", 64, null=True),
        sa.Column("recorded_at_ms", sa.BigInteger(), nullable=False),
        _text("type", 64),
        _text("actor_kind", 16),
        _text("actor_id", 64),
        _text("actor_tenant_id", 64, null=True),
        _text("ip", 64, null=True),
        _text("user_agent", 256, null=True),
        _text("target_id", 255),
        sa.Column("changes", sa.Text(), nullable=False),
        _text("previous_hash", 64),
        _text("hash", 64),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=f"fk_{ENTRIES}_tenant_id_tenants"
        ),
        sa.PrimaryKeyConstraint("id", name=f"pk_{ENTRIES}"),
    )
    op.create_index(f"uq_{ENTRIES}_chain_number", ENTRIES, ["chain", "number"], unique=True)
    op.create_index(f"ix_{ENTRIES}_chain_target_id", ENTRIES, ["chain", "target_id"])
    op.create_index(f"ix_{ENTRIES}_tenant_id", ENTRIES, ["tenant_id"])
    op.create_table(
        HEADS,
        _text("chain", 64),
        sa.Column("number", sa.BigInteger(), nullable=False),
        _text("hash", 64),
        sa.PrimaryKeyConstraint("chain", name=f"pk_{HEADS}"),
    )


def downgrade() -> None:
    op.drop_table(HEADS)
    op.drop_table(ENTRIES)
