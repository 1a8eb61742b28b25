"""Tables of the audit trail. Entries are only ever added."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned, TenantOwned


class AuditEntry(TenantOwned, Base):
    """One change. `chain` is the tenant's id, or `platform` for what is no tenant's.

    `changes` is canonical JSON, kept as the text whose hash was taken.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("uq_audit_entries_chain_number", "chain", "number", unique=True),
        Index("ix_audit_entries_chain_target_id", "chain", "target_id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    chain: Mapped[str] = mapped_column(String(64))
    number: Mapped[int]
    # None in the platform's chain, so that no tenant's scope ever reaches it
    tenant_id: Mapped[str | None] = mapped_column(  # type: ignore[assignment]
        String(64), ForeignKey("tenants.id"), index=True
    )
    recorded_at_ms: Mapped[int]
    type: Mapped[str] = mapped_column(String(64))
    actor_kind: Mapped[str] = mapped_column(String(16))
    actor_id: Mapped[str] = mapped_column(String(64))
    actor_tenant_id: Mapped[str | None] = mapped_column(String(64))
    ip: Mapped[str | None] = mapped_column(String(64))
    user_agent: Mapped[str | None] = mapped_column(String(256))
    target_id: Mapped[str] = mapped_column(String(255))
    changes: Mapped[str] = mapped_column(Text)
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(PlatformOwned, Base):
    """The end of a chain: a count and a hash, which say nothing of what is in it.

    Whoever adds to the chain holds this row until it commits.
    """

    __tablename__ = "audit_heads"

    chain: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int]
    hash: Mapped[str] = mapped_column(String(64))
