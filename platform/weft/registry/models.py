"""Tables of adapters, versions and aliases. Deleted rows stay: usage events refer to them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, TenantOwned


class Adapter(TenantOwned, Base):
    """A named LoRA of a tenant."""

    __tablename__ = "adapters"
    __table_args__ = (
        Index(
            "uq_adapters_live_tenant_id_name",
            "tenant_id",
            "name",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    base_model: Mapped[str] = mapped_column(String(255))
    description: Mapped[str] = mapped_column(Text)
    tags: Mapped[dict[str, str]] = mapped_column(JSON)
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]


class AdapterVersion(TenantOwned, Base):
    """One immutable upload. `state` is "ready" or "deleted"."""

    __tablename__ = "adapter_versions"
    __table_args__ = (
        Index("uq_adapter_versions_adapter_id_number", "adapter_id", "number", unique=True),
        Index("ix_adapter_versions_adapter_id_digest", "adapter_id", "digest"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(64), ForeignKey("adapters.id"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(80))
    base_digest: Mapped[str] = mapped_column(String(80))
    state: Mapped[str] = mapped_column(String(16))
    num_bytes: Mapped[int]
    ranks: Mapped[list[int]] = mapped_column(JSON)
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[int]


class AdapterAlias(TenantOwned, Base):
    """A movable pointer to a version."""

    __tablename__ = "adapter_aliases"

    adapter_id: Mapped[str] = mapped_column(String(64), ForeignKey("adapters.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    version_id: Mapped[str] = mapped_column(String(64), ForeignKey("adapter_versions.id"))
    updated_at: Mapped[int]
