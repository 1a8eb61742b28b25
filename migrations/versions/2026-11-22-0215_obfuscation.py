"""Whether a tenant's streams are padded where a request does not say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_0215"
down_revision = "2026_11_22_0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "tenants",
        sa.Column("include_obfuscation", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    op.drop_column("tenants", "include_obfuscation")
