"""The mark by which a database knows the secret that it is used with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_0020"
down_revision = "2026_11_21_2345"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "secret_marks",
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("mark", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("purpose", name="pk_secret_marks"),
    )


def downgrade() -> None:
    op.drop_table("secret_marks")
