"""Tables of tenants, projects and keys. No secret is stored, only its HMAC."""

from __future__ import annotations

from sqlalchemy import JSON, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned, TenantOwned


class Tenant(PlatformOwned, Base):
    """Who pays. Deleting keeps the row: usage events refer to it."""

    __tablename__ = "tenants"
    __table_args__ = (
        Index(
            "uq_tenants_live_name",
            "name",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]


class Project(TenantOwned, Base):
    """A tenant's sub-account."""

    __tablename__ = "projects"
    __table_args__ = (Index("uq_projects_tenant_id_name", "tenant_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int]


class ApiKey(TenantOwned, Base):
    """One API key; `id` is the public part of the key itself."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(64), ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(128))
    secret_hmac: Mapped[str] = mapped_column(String(64))
    last4: Mapped[str] = mapped_column(String(4))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    revoked_at: Mapped[int | None]

    def is_valid_at(self, time_s: int) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or time_s < self.expires_at)
