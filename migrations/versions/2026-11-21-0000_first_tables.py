"""Tenants, keys, adapters and usage: the first tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_0000"
down_revision = None
branch_labels = None
depends_on = None

LIVE = sa.text("deleted_at IS NULL")


def _text(name: str, length: int, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=null)


def _int(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _reference(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}_{target}"
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=name)


def _create_owned(
    table: str,
    primary_key: tuple[str, ...],
    *parts: sa.Column[Any] | sa.ForeignKeyConstraint,
) -> None:
    """A table whose rows belong to a tenant."""
    op.create_table(
        table,
        *parts,
        _text("tenant_id", 64),
        _reference(table, "tenant_id", "tenants"),
        sa.PrimaryKeyConstraint(*primary_key, name=f"pk_{table}"),
    )
    op.create_index(f"ix_{table}_tenant_id", table, ["tenant_id"])


def upgrade() -> None:
    op.create_table(
        "tenants",
        _text("id", 64),
        _text("name", 128),
        _int("created_at"),
        _int("deleted_at", null=True),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
    )
    op.create_index(
        "uq_tenants_live_name",
        "tenants",
        ["name"],
        unique=True,
        sqlite_where=LIVE,
        postgresql_where=LIVE,
    )
    _create_owned("projects", ("id",), _text("id", 64), _text("name", 128), _int("created_at"))
    op.create_index("uq_projects_tenant_id_name", "projects", ["tenant_id", "name"], unique=True)
    _create_owned(
        "api_keys",
        ("id",),
        _text("id", 64),
        _text("project_id", 64),
        _text("name", 128),
        _text("secret_hmac", 64),
        _text("last4", 4),
        sa.Column("scopes", sa.JSON(), nullable=False),
        _int("created_at"),
        _int("expires_at", null=True),
        _int("revoked_at", null=True),
        _reference("api_keys", "project_id", "projects"),
    )
    _upgrade_registry()
    _upgrade_usage()


def _upgrade_registry() -> None:
    _create_owned(
        "adapters",
        ("id",),
        _text("id", 64),
        _text("name", 63),
        _text("base_model", 255),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        _int("created_at"),
        _int("deleted_at", null=True),
    )
    op.create_index(
        "uq_adapters_live_tenant_id_name",
        "adapters",
        ["tenant_id", "name"],
        unique=True,
        sqlite_where=LIVE,
        postgresql_where=LIVE,
    )
    versions = "adapter_versions"
    _create_owned(
        versions,
        ("id",),
        _text("id", 64),
        _text("adapter_id", 64),
        _int("number"),
        _text("digest", 80),
        _text("base_digest", 80),
        _text("state", 16),
        _int("num_bytes"),
        sa.Column("ranks", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        _int("created_at"),
        _reference(versions, "adapter_id", "adapters"),
    )
    op.create_index(
        f"uq_{versions}_adapter_id_number", versions, ["adapter_id", "number"], unique=True
    )
    op.create_index(f"ix_{versions}_adapter_id_digest", versions, ["adapter_id", "digest"])
    _create_owned(
        "adapter_aliases",
        ("adapter_id", "name"),
        _text("adapter_id", 64),
        _text("name", 63),
        _text("version_id", 64),
        _int("updated_at"),
        _reference("adapter_aliases", "adapter_id", "adapters"),
        _reference("adapter_aliases", "version_id", versions),
    )


def _admitted() -> tuple[sa.Column[Any], ...]:
    """What both usage tables say of a request."""
    return (
        _text("event_id", 80),
        _text("project_id", 64),
        _text("api_key_id", 64),
        _text("model", 255),
        _text("adapter_id", 64, null=True),
        _int("adapter_version", null=True),
        _text("adapter_digest", 80, null=True),
        _text("base_model", 255),
        _int("started_at_ms"),
    )


def _upgrade_usage() -> None:
    _create_owned("usage_pending", ("event_id",), *_admitted())
    _create_owned(
        "usage_events",
        ("event_id",),
        *_admitted(),
        _int("ended_at_ms"),
        _int("prompt_tokens"),
        _int("cached_prompt_tokens"),
        _int("completion_tokens"),
        _text("finish_reason", 16, null=True),
        _text("outcome", 16),
    )
    op.create_index("ix_usage_events_tenant_id_ended", "usage_events", ["tenant_id", "ended_at_ms"])


def downgrade() -> None:
    for table in (
        "usage_events",
        "usage_pending",
        "adapter_aliases",
        "adapter_versions",
        "adapters",
        "api_keys",
        "projects",
        "tenants",
    ):
        op.drop_table(table)
