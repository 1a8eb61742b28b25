"""Keys of administrators and operators; keys that rotate and can be blocked; tenants that can be
suspended and projects that can be archived."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_2345"
down_revision = "2026_11_21_2340"
branch_labels = None
depends_on = None

KEYS = "api_keys"
UNARCHIVED = sa.text("archived_at IS NULL")


def _text(name: str, length: int, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=null)


def _int(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _new_key_columns() -> tuple[sa.Column[str] | sa.Column[int], ...]:
    return (
        _text("previous_hmac", 64, null=True),
        _int("previous_expires_at", null=True),
        _int("blocked_at", null=True),
        _int("last_used_at", null=True),
        _text("maker_kind", 16, null=True),
        _text("maker_id", 64, null=True),
    )


def upgrade() -> None:
    op.add_column("tenants", _int("suspended_at", null=True))
    op.add_column("projects", _int("archived_at", null=True))
    op.drop_index("uq_projects_tenant_id_name", "projects")
    op.create_index(
        "uq_projects_live_tenant_id_name",
        "projects",
        ["tenant_id", "name"],
        unique=True,
        sqlite_where=UNARCHIVED,
        postgresql_where=UNARCHIVED,
    )
    for column in _new_key_columns():
        op.add_column(KEYS, column)
    owner = (
        _text("tenant_id", 64),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_admin_keys_tenant_id_tenants"
        ),
    )
    _create_keys("admin_keys", *owner)
    op.create_index("ix_admin_keys_tenant_id", "admin_keys", ["tenant_id"])
    _create_keys("operator_keys")


def _create_keys(table: str, *owner: sa.Column[str] | sa.ForeignKeyConstraint) -> None:
    op.create_table(
        table,
        _text("id", 64),
        _text("name", 128),
        _text("secret_hmac", 64),
        _text("last4", 4),
        sa.Column("permissions", sa.JSON(), nullable=False),
        _int("created_at"),
        _int("expires_at", null=True),
        _int("revoked_at", null=True),
        *_new_key_columns(),
        *owner,
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
    )


def downgrade() -> None:
    for table in ("operator_keys", "admin_keys"):
        op.drop_table(table)
    _revoke_what_may_not_act()
    for column in _new_key_columns():
        op.drop_column(KEYS, column.name)
    # names were unique over all projects in that release
    op.execute(
        "UPDATE projects SET name = substr(name, 1, 64) || ' ' || id WHERE archived_at IS NOT NULL"
    )
    op.drop_index("uq_projects_live_tenant_id_name", "projects")
    op.create_index("uq_projects_tenant_id_name", "projects", ["tenant_id", "name"], unique=True)
    op.drop_column("projects", "archived_at")
    op.drop_column("tenants", "suspended_at")


def _revoke_what_may_not_act() -> None:
    """That release knows no blocked keys, archived projects or suspended tenants: without this,
    their keys would work again."""
    op.get_bind().execute(
        sa.text(
            "UPDATE api_keys SET revoked_at = :now WHERE revoked_at IS NULL AND ("
            "blocked_at IS NOT NULL "
            "OR project_id IN (SELECT id FROM projects WHERE archived_at IS NOT NULL) "
            "OR tenant_id IN (SELECT id FROM tenants WHERE suspended_at IS NOT NULL))"
        ),
        {"now": int(time.time())},
    )
