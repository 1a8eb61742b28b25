"""Rollups by minute and by day beside those by hour, in the order in which reports read them.

All are made anew from the events. What is not rolled up yet stays due, as replicas' numbers say.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "2026_11_22_0230"
down_revision = "2026_11_22_0215"
branch_labels = None
depends_on = None

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
KEYS = (
    "tenant_id, project_id, api_key_id, model, base_model, adapter_id, adapter_version, "
    "adapter_digest, price_id"
)
SUMS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "amount_pico")


def _number(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _text(name: str, length: int, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), nullable=null)


def _create(key: tuple[str, ...], *numbers: str, **options: Any) -> None:
    op.create_table(
        "usage_rollups",
        *(_number(name) for name in numbers),
        _text("project_id", 64),
        _text("api_key_id", 64),
        _text("model", 255),
        _text("base_model", 255),
        _text("adapter_id", 64, null=True),
        _number("adapter_version", null=True),
        _text("adapter_digest", 80, null=True),
        _text("price_id", 64, null=True),
        *(_number(name) for name in ("num_requests", *SUMS)),
        _text("tenant_id", 64),
        sa.PrimaryKeyConstraint(*key, name="pk_usage_rollups"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_usage_rollups_tenant_id_tenants"
        ),
        **options,
    )


def _fill(columns: str, values: str, start: str, num_requests: str, source: str, by: str) -> None:
    """Sums of `source` by `start`; `columns` are those of the span, its start the last of them."""
    op.execute(
        f"INSERT INTO usage_rollups ({columns}, number, {KEYS}, num_requests, {', '.join(SUMS)}) "
        f"SELECT {values}span_start, ROW_NUMBER() OVER (PARTITION BY {by}), {KEYS}, "
        f"num_requests, {', '.join(SUMS)} FROM ("
        f"SELECT {start} AS span_start, {KEYS}, {num_requests} AS num_requests, "
        f"{', '.join(f'SUM({name}) AS {name}' for name in SUMS)} FROM {source} "
        f"GROUP BY {KEYS}, {start}) AS summed"
    )


def upgrade() -> None:
    op.drop_table("usage_rollups")
    key = ("tenant_id", "width_s", "start_at", "number")
    _create(key, "width_s", "start_at", "number", sqlite_with_rowid=False)
    op.create_index("ix_usage_rollups_width_s_start_at", "usage_rollups", ["width_s", "start_at"])
    op.create_table(
        "usage_rollups_due",
        _number("width_s"),
        _number("start_at"),
        sa.PrimaryKeyConstraint("width_s", "start_at", name="pk_usage_rollups_due"),
    )
    _fill_width(
        MINUTE_S, f"ended_at_ms / {MINUTE_S * 1000} * {MINUTE_S}", "COUNT(*)", "usage_events"
    )
    for finer_s, width_s in ((MINUTE_S, HOUR_S), (HOUR_S, DAY_S)):
        source = f"usage_rollups WHERE width_s = {finer_s}"
        _fill_width(width_s, f"start_at / {width_s} * {width_s}", "SUM(num_requests)", source)


def _fill_width(width_s: int, start: str, num_requests: str, source: str) -> None:
    by = "tenant_id, span_start"
    _fill("width_s, start_at", f"{width_s}, ", start, num_requests, source, by)


def downgrade() -> None:
    op.drop_table("usage_rollups_due")
    op.drop_table("usage_rollups")
    _create(("hour_at", "number"), "hour_at", "number")
    op.create_index("ix_usage_rollups_tenant_id", "usage_rollups", ["tenant_id"])
    op.create_index("ix_usage_rollups_tenant_id_hour_at", "usage_rollups", ["tenant_id", "hour_at"])
    start = f"ended_at_ms / {HOUR_S * 1000} * {HOUR_S}"
    _fill("hour_at", "", start, "COUNT(*)", "usage_events", "span_start")
