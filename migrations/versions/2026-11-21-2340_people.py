"""People: users, memberships, invites, sessions, and providers that vouch for them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_2340"
down_revision = "2026_11_21_2335"
branch_labels = None
depends_on = None


def _text(name: str, length: int, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=null)


def _int(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _create(
    table: str,
    primary_key: tuple[str, ...],
    *columns: sa.Column[Any],
    references: dict[str, str] | None = None,
    indexed: tuple[str, ...] = (),
) -> None:
    """A table; what refers to another table is indexed as well."""
    references = references or {}
    op.create_table(
        table,
        *columns,
        *(
            sa.ForeignKeyConstraint([column], [f"{to}.id"], name=f"fk_{table}_{column}_{to}")
            for column, to in references.items()
        ),
        sa.PrimaryKeyConstraint(*primary_key, name=f"pk_{table}"),
    )
    for column in (*indexed, *(name for name in references if name != primary_key[0])):
        op.create_index(f"ix_{table}_{column}", table, [column])


def upgrade() -> None:
    _create(
        "users",
        ("id",),
        _text("id", 64),
        _text("email", 254),
        _text("name", 128),
        _text("password_hash", 255, null=True),
        sa.Column("is_operator", sa.Boolean(), nullable=False),
        _int("created_at"),
        _int("disabled_at", null=True),
    )
    op.create_index("uq_users_email", "users", ["email"], unique=True)
    _create_memberships()
    _create_providers()
    _create_sessions()


def _create_memberships() -> None:
    _create(
        "memberships",
        ("id",),
        _text("id", 64),
        _text("user_id", 64),
        _text("role", 32),
        _text("source", 64),
        _int("created_at"),
        _text("tenant_id", 64),
        references={"user_id": "users", "tenant_id": "tenants"},
    )
    op.create_index(
        "uq_memberships_tenant_id_user_id", "memberships", ["tenant_id", "user_id"], unique=True
    )
    _create(
        "invites",
        ("id",),
        _text("id", 64),
        _text("email", 254),
        _text("role", 32),
        _text("token_hash", 64),
        _int("created_at"),
        _int("expires_at"),
        _int("accepted_at", null=True),
        _text("tenant_id", 64),
        references={"tenant_id": "tenants"},
        indexed=("email",),
    )
    op.create_index("uq_invites_token_hash", "invites", ["token_hash"], unique=True)


def _create_providers() -> None:
    _create(
        "oidc_providers",
        ("id",),
        _text("id", 64),
        _text("name", 128),
        _text("issuer", 512),
        _text("client_id", 255),
        sa.Column("sealed_secret", sa.Text(), nullable=True),
        _text("role_claim", 255, null=True),
        sa.Column("role_map", sa.JSON(), nullable=False),
        _int("created_at"),
        _int("disabled_at", null=True),
    )
    _create(
        "oidc_domains",
        ("domain",),
        _text("domain", 253),
        _text("provider_id", 64),
        _text("admission", 16),
        _text("default_role", 32),
        _int("created_at"),
        _text("tenant_id", 64),
        references={"provider_id": "oidc_providers", "tenant_id": "tenants"},
    )
    _create(
        "oidc_identities",
        ("provider_id", "subject"),
        _text("provider_id", 64),
        _text("subject", 255),
        _text("user_id", 64),
        _int("created_at"),
        references={"provider_id": "oidc_providers", "user_id": "users"},
    )


def _create_sessions() -> None:
    _create(
        "user_sessions",
        ("secret_hash",),
        _text("secret_hash", 64),
        _text("id", 64),
        _text("user_id", 64),
        _text("tenant_id", 64, null=True),
        _text("provider_id", 64, null=True),
        _text("ip_address", 64),
        _text("user_agent", 256),
        _int("created_at"),
        _int("last_seen_at"),
        _int("expires_at"),
        references={"user_id": "users", "tenant_id": "tenants", "provider_id": "oidc_providers"},
        indexed=("expires_at",),
    )
    op.create_index("uq_user_sessions_id", "user_sessions", ["id"], unique=True)
    _create(
        "password_resets",
        ("token_hash",),
        _text("token_hash", 64),
        _text("user_id", 64),
        _int("created_at"),
        _int("expires_at"),
        references={"user_id": "users"},
    )
    _create(
        "sign_in_attempts",
        ("key",),
        _text("key", 64),
        _int("num_failures"),
        _int("blocked_until_ms"),
        _int("expires_at"),
        indexed=("expires_at",),
    )


def downgrade() -> None:
    for table in (
        "sign_in_attempts",
        "password_resets",
        "user_sessions",
        "oidc_identities",
        "oidc_domains",
        "oidc_providers",
        "invites",
        "memberships",
        "users",
    ):
        op.drop_table(table)
