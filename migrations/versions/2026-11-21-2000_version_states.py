"""States of versions, their sources and cards, uploads in parts, idempotency keys."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_2000"
down_revision = "2026_11_21_0000"
branch_labels = None
depends_on = None

VERSIONS = "adapter_versions"


def _text(name: str, length: int) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=False)


def _int(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _reference(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}_{target}"
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=name)


def upgrade() -> None:
    with op.batch_alter_table(VERSIONS) as batch:
        batch.alter_column("digest", existing_type=sa.String(80), nullable=True)
        batch.add_column(
            sa.Column("source", sa.JSON(), nullable=False, server_default='{"type": "multipart"}')
        )
        batch.add_column(sa.Column("card", sa.JSON(), nullable=False, server_default="{}"))
        batch.add_column(
            sa.Column("is_pinned", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch.add_column(
            sa.Column("num_attempts", sa.BigInteger(), nullable=False, server_default="0")
        )
        batch.add_column(_int("archived_at", null=True))
    # the defaults were for the rows that were there
    with op.batch_alter_table(VERSIONS) as batch:
        for column in ("source", "card", "is_pinned", "num_attempts"):
            batch.alter_column(column, server_default=None)
    op.create_index(f"ix_{VERSIONS}_digest", VERSIONS, ["digest"])
    op.create_index(f"ix_{VERSIONS}_state", VERSIONS, ["state"])
    _archive_deleted()
    op.create_table(
        "purging_digests",
        _text("digest", 80),
        _int("started_at"),
        sa.PrimaryKeyConstraint("digest", name="pk_purging_digests"),
    )
    _create_idempotency_keys()
    _create_uploads()


def _archive_deleted() -> None:
    """A version that was deleted, or whose adapter was, has been so since now: the time at which it
    happened was not kept."""
    op.get_bind().execute(
        sa.text(
            "UPDATE adapter_versions SET state = 'archived', archived_at = :now "
            "WHERE state = 'deleted' OR "
            "adapter_id IN (SELECT id FROM adapters WHERE deleted_at IS NOT NULL)"
        ),
        {"now": int(time.time())},
    )


def _create_idempotency_keys() -> None:
    table = "idempotency_keys"
    op.create_table(
        table,
        _text("tenant_id", 64),
        _text("key", 255),
        _text("fingerprint", 64),
        _text("version_id", 64),
        _int("status_code"),
        _int("created_at"),
        _reference(table, "tenant_id", "tenants"),
        _reference(table, "version_id", VERSIONS),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=f"pk_{table}"),
    )
    for column in ("tenant_id", "created_at"):
        op.create_index(f"ix_{table}_{column}", table, [column])


def _create_uploads() -> None:
    op.create_table(
        "uploads",
        _text("id", 64),
        _text("filename", 255),
        _text("mime_type", 255),
        _int("num_bytes"),
        _text("status", 16),
        sa.Column("remote_id", sa.Text(), nullable=True),
        _int("num_begun_parts"),
        sa.Column("part_ids", sa.JSON(), nullable=False),
        _int("created_at"),
        _int("expires_at"),
        _text("tenant_id", 64),
        _reference("uploads", "tenant_id", "tenants"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    for column in ("tenant_id", "expires_at"):
        op.create_index(f"ix_uploads_{column}", "uploads", [column])
    op.create_table(
        "upload_parts",
        _text("id", 64),
        _text("upload_id", 64),
        _int("num_bytes"),
        _int("number"),
        sa.Column("etag", sa.Text(), nullable=True),
        _int("created_at"),
        _text("tenant_id", 64),
        _reference("upload_parts", "tenant_id", "tenants"),
        _reference("upload_parts", "upload_id", "uploads"),
        sa.PrimaryKeyConstraint("id", name="pk_upload_parts"),
    )
    for column in ("tenant_id", "upload_id"):
        op.create_index(f"ix_upload_parts_{column}", "upload_parts", [column])


def downgrade() -> None:
    for table in ("upload_parts", "uploads", "idempotency_keys", "purging_digests"):
        op.drop_table(table)
    # what was never ready was no version in that release
    op.execute("DELETE FROM adapter_versions WHERE state NOT IN ('ready', 'archived', 'purged')")
    op.execute("UPDATE adapter_versions SET state = 'deleted' WHERE state <> 'ready'")
    for index in ("digest", "state"):
        op.drop_index(f"ix_{VERSIONS}_{index}", VERSIONS)
    with op.batch_alter_table(VERSIONS) as batch:
        for column in ("source", "card", "is_pinned", "num_attempts", "archived_at"):
            batch.drop_column(column)
        batch.alter_column("digest", existing_type=sa.String(80), nullable=False)
