"""Tables of limits and budgets. A row without a tenant is the platform's own, of a base."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, TenantOwned
from weft.limits.subjects import Period, SubjectKind


class Limit(TenantOwned, Base):
    """What a subject may use; null: no limit of its own.

    `model` narrows a project's rates to one model ("": all of them). Requests, tokens and running
    requests bind requests; adapters, versions and bytes bind what a tenant has registered.
    """

    __tablename__ = "limits"
    __table_args__ = (
        Index("uq_limits_subject_model", "subject_kind", "subject_id", "model", unique=True),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(  # type: ignore[assignment]  # a base has none
        String(64), ForeignKey("tenants.id"), index=True
    )
    subject_kind: Mapped[SubjectKind] = mapped_column(String(16))
    subject_id: Mapped[str] = mapped_column(String(255))
    model: Mapped[str] = mapped_column(String(255))
    requests_per_minute: Mapped[int | None]
    tokens_per_minute: Mapped[int | None]
    max_running: Mapped[int | None]
    max_adapters: Mapped[int | None]
    max_versions: Mapped[int | None]
    max_stored_bytes: Mapped[int | None]
    created_at: Mapped[int]
    updated_at: Mapped[int]


class Budget(TenantOwned, Base):
    """Money that a subject may spend in each period, in picodollars.

    `spent_pico` and `held_pico` are those of the period that began at `period_start` (Unix seconds,
    0 where the period is all time); the first hold of a later period begins them anew. What a
    budget counts begins when it is made.
    """

    __tablename__ = "budgets"
    __table_args__ = (
        Index("uq_budgets_subject_period", "subject_kind", "subject_id", "period", unique=True),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(  # type: ignore[assignment]  # a base has none
        String(64), ForeignKey("tenants.id"), index=True
    )
    subject_kind: Mapped[SubjectKind] = mapped_column(String(16))
    subject_id: Mapped[str] = mapped_column(String(255))
    period: Mapped[Period] = mapped_column(String(8))
    limit_pico: Mapped[int]
    spent_pico: Mapped[int]
    held_pico: Mapped[int]
    period_start: Mapped[int]
    created_at: Mapped[int]
    updated_at: Mapped[int]
