"""Prices, amounts and sequences of usage events; ledger, outbox, rollups and replicas.

Events of before have no price, cost nothing, and are numbered as those of one replica, "history".
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2026_11_21_2325"
down_revision = "2026_11_21_2320"
branch_labels = None
depends_on = None

REQUEST_COLUMNS = ("replica_id", "engine_id", "price_id")
PENDING_COLUMNS = ("hold_pico", "budget_holds")
EVENT_COLUMNS = ("recorded_at_ms", "amount_pico", "replica_seq", "schema_version")
UNDELIVERED = sa.text("delivered_at_ms IS NULL")


def _text(name: str, length: int, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=null)


def _int(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _reference(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}_{target}"
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=name)


def _create(
    table: str,
    primary_key: tuple[str, ...],
    *parts: sa.Column[Any] | sa.ForeignKeyConstraint,
    is_owned: bool = False,
) -> None:
    owner: tuple[Any, ...] = ()
    if is_owned:
        owner = (_text("tenant_id", 64), _reference(table, "tenant_id", "tenants"))
    op.create_table(
        table, *parts, *owner, sa.PrimaryKeyConstraint(*primary_key, name=f"pk_{table}")
    )
    if is_owned:
        op.create_index(f"ix_{table}_tenant_id", table, ["tenant_id"])


def upgrade() -> None:
    _create_prices()
    _create_replicas()
    _extend_pending()
    _extend_events()
    _create_ledger()
    _create_outbox()
    _create_rollups()


def _create_prices() -> None:
    _create(
        "price_books",
        ("id",),
        _text("id", 64),
        _text("name", 128),
        _int("effective_from"),
        _int("created_at"),
    )
    op.create_index("ix_price_books_effective_from", "price_books", ["effective_from"])
    _create(
        "prices",
        ("id",),
        _text("id", 64),
        _text("price_book_id", 64),
        _text("base_model", 255),
        _text("tenant_id", 64, null=True),
        _text("adapter_id", 64, null=True),
        _int("input_rate"),
        _int("cached_input_rate"),
        _int("output_rate"),
        _reference("prices", "price_book_id", "price_books"),
        _reference("prices", "tenant_id", "tenants"),
    )
    op.create_index("ix_prices_price_book_id", "prices", ["price_book_id"])
    op.create_index(
        "ix_prices_base_model_tenant_id_adapter_id",
        "prices",
        ["base_model", "tenant_id", "adapter_id"],
    )


def _create_replicas() -> None:
    _create(
        "replicas",
        ("id",),
        _text("id", 64),
        _text("kind", 16),
        _int("started_at_ms"),
        _int("heartbeat_at_ms"),
        _int("closed_at_ms", null=True),
        _int("last_seq"),
        _int("rolled_up_seq"),
        _int("checkpoint_at_ms", null=True),
        _int("prompt_tokens"),
        _int("completion_tokens"),
    )
    op.execute(
        "INSERT INTO replicas (id, kind, started_at_ms, heartbeat_at_ms, closed_at_ms, last_seq, "
        "rolled_up_seq, prompt_tokens, completion_tokens) "
        "SELECT 'history', 'history', COALESCE(MIN(started_at_ms), 0), "
        "COALESCE(MAX(ended_at_ms), 0), COALESCE(MAX(ended_at_ms), 0), COUNT(*), 0, 0, 0 "
        "FROM usage_events "
        "HAVING COUNT(*) > 0 OR EXISTS (SELECT 1 FROM usage_pending)"
    )


def _request_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("replica_id", sa.String(64), nullable=False, server_default="history"),
        _text("engine_id", 64, null=True),
        _text("price_id", 64, null=True),
    )


def _extend(table: str, *columns: sa.Column[Any]) -> None:
    """Add columns whose defaults are for the rows that are there."""
    with op.batch_alter_table(table) as batch:
        for column in (*_request_columns(), *columns):
            batch.add_column(column)
    with op.batch_alter_table(table) as batch:
        for column in ("replica_id", *(column.name for column in columns)):
            batch.alter_column(column, server_default=None)
        batch.create_foreign_key(f"fk_{table}_price_id_prices", "prices", ["price_id"], ["id"])


def _number(name: str, default: int) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default=str(default))


def _extend_pending() -> None:
    holds = sa.Column("budget_holds", sa.JSON(), nullable=False, server_default="[]")
    _extend("usage_pending", _number("hold_pico", 0), holds)
    op.create_index("ix_usage_pending_replica_id", "usage_pending", ["replica_id"])


def _extend_events() -> None:
    events = "usage_events"
    _extend(
        events,
        _number("recorded_at_ms", 0),
        _number("amount_pico", 0),
        _number("replica_seq", 0),
        _number("schema_version", 1),
    )
    op.execute(
        "UPDATE usage_events SET recorded_at_ms = ended_at_ms, replica_seq = numbered.seq FROM "
        "(SELECT event_id, ROW_NUMBER() OVER (ORDER BY ended_at_ms, event_id) AS seq "
        "FROM usage_events) AS numbered WHERE numbered.event_id = usage_events.event_id"
    )
    op.create_index("ix_usage_events_ended_at_ms", events, ["ended_at_ms"])
    op.create_index(
        "uq_usage_events_replica_id_replica_seq", events, ["replica_id", "replica_seq"], unique=True
    )


def _create_ledger() -> None:
    _create(
        "ledger_tx",
        ("id",),
        _text("id", 100),
        _text("kind", 16),
        _text("event_id", 80, null=True),
        _int("created_at_ms"),
        is_owned=True,
    )
    op.create_index("ix_ledger_tx_event_id", "ledger_tx", ["event_id"])
    _create(
        "ledger_entries",
        ("tx_id", "account"),
        _text("tx_id", 100),
        _text("account", 100),
        _int("amount_pico"),
        _reference("ledger_entries", "tx_id", "ledger_tx"),
        is_owned=True,
    )
    op.create_index("ix_ledger_entries_account", "ledger_entries", ["account"])
    if op.get_bind().dialect.name == "postgresql":
        _guard_sums()


def _guard_sums() -> None:
    """At the commit, whoever wrote the entries: those of a transaction add up to 0."""
    op.execute(
        """
        CREATE FUNCTION check_ledger_sum() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
          touched text := CASE WHEN TG_OP = 'DELETE' THEN OLD.tx_id ELSE NEW.tx_id END;
          total numeric;
        BEGIN
          SELECT COALESCE(SUM(amount_pico), 0) INTO total
          FROM ledger_entries WHERE tx_id = touched;
          IF total <> 0 THEN
            RAISE EXCEPTION 'ledger transaction % adds up to %, not to 0', touched, total
              USING ERRCODE = 'check_violation';
          END IF;
          RETURN NULL;
        END $$
        """
    )
    op.execute(
        "CREATE CONSTRAINT TRIGGER ledger_entries_sum "
        "AFTER INSERT OR UPDATE OR DELETE ON ledger_entries "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_ledger_sum()"
    )


def _create_outbox() -> None:
    _create(
        "outbox",
        ("sink", "id"),
        _text("sink", 64),
        _text("id", 100),
        _text("kind", 64),
        sa.Column("payload", sa.JSON(), nullable=False),
        _int("created_at_ms"),
        _int("due_at_ms"),
        _int("claimed_until_ms"),
        _int("num_attempts"),
        _int("delivered_at_ms", null=True),
        is_owned=True,
    )
    op.create_index(
        "ix_outbox_undelivered",
        "outbox",
        ["due_at_ms"],
        sqlite_where=UNDELIVERED,
        postgresql_where=UNDELIVERED,
    )


def _create_rollups() -> None:
    _create(
        "usage_rollups",
        ("hour_at", "number"),
        _int("hour_at"),
        _int("number"),
        _text("project_id", 64),
        _text("api_key_id", 64),
        _text("model", 255),
        _text("base_model", 255),
        _text("adapter_id", 64, null=True),
        _int("adapter_version", null=True),
        _text("adapter_digest", 80, null=True),
        _text("price_id", 64, null=True),
        _int("num_requests"),
        _int("prompt_tokens"),
        _int("cached_prompt_tokens"),
        _int("completion_tokens"),
        _int("amount_pico"),
        is_owned=True,
    )
    op.create_index("ix_usage_rollups_tenant_id_hour_at", "usage_rollups", ["tenant_id", "hour_at"])


def downgrade() -> None:
    for table in ("usage_rollups", "outbox", "ledger_entries", "ledger_tx"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION check_ledger_sum()")
    op.drop_index("uq_usage_events_replica_id_replica_seq", "usage_events")
    op.drop_index("ix_usage_events_ended_at_ms", "usage_events")
    op.drop_index("ix_usage_pending_replica_id", "usage_pending")
    for table, columns in (("usage_events", EVENT_COLUMNS), ("usage_pending", PENDING_COLUMNS)):
        with op.batch_alter_table(table) as batch:
            batch.drop_constraint(f"fk_{table}_price_id_prices", type_="foreignkey")
            for column in (*REQUEST_COLUMNS, *columns):
                batch.drop_column(column)
    for table in ("replicas", "prices", "price_books"):
        op.drop_table(table)
