"""Tables of usage: events and what is added up from them, the write-ahead rows of requests that
are not over yet, the processes that write them, and the messages that wait to be delivered.

Amounts are picodollars. A token's price in picodollars is its price in micro-dollars per million.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import JSON, ForeignKey, Index, PrimaryKeyConstraint, String, text
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned, TenantOwned
from weft.usage.money_models import Price

Outcome = Literal["ok", "cancelled", "error", "lost"]
ReplicaKind = Literal["server", "engine", "history"]

# of events as this release writes them; 1: before prices and sequences
EVENT_SCHEMA_VERSION = 2


class _Request(TenantOwned):
    """What is known of a request when it is admitted. `event_id` is the engine's request id.

    `replica_id` is the process that meters it, `engine_id` the engine that runs it. `price_id` is
    the price that holds for it whatever is published while it runs; None: it has none and is free.
    """

    event_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    api_key_id: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(255))
    adapter_id: Mapped[str | None] = mapped_column(String(64))
    adapter_version: Mapped[int | None]
    adapter_digest: Mapped[str | None] = mapped_column(String(80))
    base_model: Mapped[str] = mapped_column(String(255))
    started_at_ms: Mapped[int]
    replica_id: Mapped[str] = mapped_column(String(64))
    engine_id: Mapped[str | None] = mapped_column(String(64))

    price_id: Mapped[str | None] = mapped_column(String(64), ForeignKey(Price.id))


class UsagePending(_Request, Base):
    """Written before the engine hears of the request, deleted with the insert of its event.

    `hold_pico` is the most that it can cost; `budget_holds` is what its budgets keep for it.
    """

    __tablename__ = "usage_pending"
    __table_args__ = (Index("ix_usage_pending_replica_id", "replica_id"),)

    hold_pico: Mapped[int]
    budget_holds: Mapped[list[list[str | int]]] = mapped_column(JSON)


class UsageEvent(_Request, Base):
    """Append-only. `outcome` is ok, cancelled, error or lost; tokens are the engine's counts.

    `ended_at_ms` is when the request ended and decides its hour, `recorded_at_ms` when the row was
    written, by the database's clock. The events of a replica are numbered from 1 without a gap.
    """

    __tablename__ = "usage_events"
    __table_args__ = (
        Index("ix_usage_events_tenant_id_ended", "tenant_id", "ended_at_ms"),
        Index("ix_usage_events_ended_at_ms", "ended_at_ms"),
        Index("uq_usage_events_replica_id_replica_seq", "replica_id", "replica_seq", unique=True),
    )

    ended_at_ms: Mapped[int]
    recorded_at_ms: Mapped[int]
    prompt_tokens: Mapped[int]
    cached_prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    outcome: Mapped[str] = mapped_column(String(16))
    amount_pico: Mapped[int]
    replica_seq: Mapped[int]
    schema_version: Mapped[int]


class Replica(Base, PlatformOwned):
    """A process that meters, or an engine as the processes see it; it works for all tenants.

    `last_seq` is the number of its newest event, `rolled_up_seq` up to where rollups hold them. Of
    an engine, the counts are what it said at `checkpoint_at_ms`: never less than was billed.
    """

    __tablename__ = "replicas"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    started_at_ms: Mapped[int]
    heartbeat_at_ms: Mapped[int]
    closed_at_ms: Mapped[int | None]
    last_seq: Mapped[int]
    rolled_up_seq: Mapped[int]
    checkpoint_at_ms: Mapped[int | None]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]


class UsageRollup(Base, TenantOwned):
    """The events of a minute, an hour or a day (by `ended_at_ms`, UTC) that are alike, added up.

    Recomputed as a whole, never incremented: minutes from events, hours from minutes, days from
    hours. `number` counts the rows of a tenant's span of `width_s` seconds.
    """

    __tablename__ = "usage_rollups"
    __table_args__ = (
        # SQLite keeps the rows in this order, so that a report reads neighbours
        PrimaryKeyConstraint("tenant_id", "width_s", "start_at", "number"),
        Index("ix_usage_rollups_width_s_start_at", "width_s", "start_at"),
        {"sqlite_with_rowid": False},
    )

    tenant_id: Mapped[str] = mapped_column(String(64), ForeignKey("tenants.id"))
    width_s: Mapped[int]
    start_at: Mapped[int]
    number: Mapped[int]
    project_id: Mapped[str] = mapped_column(String(64))
    api_key_id: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(255))
    base_model: Mapped[str] = mapped_column(String(255))
    adapter_id: Mapped[str | None] = mapped_column(String(64))
    adapter_version: Mapped[int | None]
    adapter_digest: Mapped[str | None] = mapped_column(String(80))
    price_id: Mapped[str | None] = mapped_column(String(64))
    num_requests: Mapped[int]
    prompt_tokens: Mapped[int]
    cached_prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    amount_pico: Mapped[int]


class DueRollup(Base, PlatformOwned):
    """An hour or a day that is not rolled up yet, or has changed since; it is one for all tenants.

    Minutes are not named here: those are due that have events after their replica's
    `rolled_up_seq`.
    """

    __tablename__ = "usage_rollups_due"

    width_s: Mapped[int] = mapped_column(primary_key=True)
    start_at: Mapped[int] = mapped_column(primary_key=True)


class OutboxMessage(Base, TenantOwned):
    """A message for one sink, written in the transaction of what it tells.

    `id` is the same at every delivery. It is tried from `due_at_ms` on, by whoever holds the claim
    until `claimed_until_ms` (0: nobody).
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index(
            "ix_outbox_undelivered",
            "due_at_ms",
            sqlite_where=text("delivered_at_ms IS NULL"),
            postgresql_where=text("delivered_at_ms IS NULL"),
        ),
    )

    sink: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    kind: Mapped[str] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at_ms: Mapped[int]
    due_at_ms: Mapped[int]
    claimed_until_ms: Mapped[int]
    num_attempts: Mapped[int]
    delivered_at_ms: Mapped[int | None]
