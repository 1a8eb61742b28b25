"""Tables of usage: events, and the write-ahead rows of requests that are not over yet."""

from __future__ import annotations

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, TenantOwned


class _Request(TenantOwned):
    """What is known of a request when it is admitted. `event_id` is the engine's request id."""

    event_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64))
    api_key_id: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(255))
    adapter_id: Mapped[str | None] = mapped_column(String(64))
    adapter_version: Mapped[int | None]
    adapter_digest: Mapped[str | None] = mapped_column(String(80))
    base_model: Mapped[str] = mapped_column(String(255))
    started_at_ms: Mapped[int]


class UsagePending(_Request, Base):
    """Written before the engine hears of the request, deleted with the insert of its event."""

    __tablename__ = "usage_pending"


class UsageEvent(_Request, Base):
    """Append-only. `outcome` is ok, cancelled, error or lost; tokens are the engine's counts."""

    __tablename__ = "usage_events"
    __table_args__ = (Index("ix_usage_events_tenant_id_ended", "tenant_id", "ended_at_ms"),)

    ended_at_ms: Mapped[int]
    prompt_tokens: Mapped[int]
    cached_prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    finish_reason: Mapped[str | None] = mapped_column(String(16))
    outcome: Mapped[str] = mapped_column(String(16))
