"""Tables of tenants, projects and keys. No secret is stored, only its HMAC."""

from __future__ import annotations

from sqlalchemy import JSON, ForeignKey, Index, String, false, text
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned, TenantOwned
from weft.tenancy.principal import Permission


class Tenant(PlatformOwned, Base):
    """Who pays. Deleting keeps the row: usage events refer to it. Suspending can be undone.
    `include_obfuscation`: streams are padded where a request does not say."""

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
    suspended_at: Mapped[int | None]
    deleted_at: Mapped[int | None]
    include_obfuscation: Mapped[bool] = mapped_column(default=False, server_default=false())


class Project(TenantOwned, Base):
    """A tenant's sub-account. Archiving is final; the row stays, as usage events refer to it."""

    __tablename__ = "projects"
    __table_args__ = (
        Index(
            "uq_projects_live_tenant_id_name",
            "tenant_id",
            "name",
            unique=True,
            sqlite_where=text("archived_at IS NULL"),
            postgresql_where=text("archived_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int]
    archived_at: Mapped[int | None]


class KeyColumns:
    """What keys of every kind have; `id` is the public part of the key's own text.

    A rotated key's former secret, `previous_hmac`, is right until `previous_expires_at`. Revoking
    is final, blocking is not. `last_used_at` lags by up to a minute. The maker is whose authority
    bounds the key's: an "admin_key", an "operator_key" or a "session" (its user's id); None where
    the data folder's owner made it on the command line.
    """

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    secret_hmac: Mapped[str] = mapped_column(String(64))
    last4: Mapped[str] = mapped_column(String(4))
    previous_hmac: Mapped[str | None] = mapped_column(String(64))
    previous_expires_at: Mapped[int | None]
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    blocked_at: Mapped[int | None]
    revoked_at: Mapped[int | None]
    last_used_at: Mapped[int | None]
    maker_kind: Mapped[str | None] = mapped_column(String(16))
    maker_id: Mapped[str | None] = mapped_column(String(64))

    def is_valid_at(self, time_s: int) -> bool:
        """Neither revoked, blocked nor expired."""
        if self.revoked_at is not None or self.blocked_at is not None:
            return False
        return self.expires_at is None or time_s < self.expires_at

    def hmacs_at(self, time_s: int) -> tuple[str, ...]:
        """The hashes of the secrets that are right: the former one's too, within its grace."""
        ends_at = self.previous_expires_at
        if self.previous_hmac is None or ends_at is None or time_s >= ends_at:
            return (self.secret_hmac,)
        return self.secret_hmac, self.previous_hmac


class ApiKey(KeyColumns, TenantOwned, Base):
    """A project's key: calls models, by its scopes."""

    __tablename__ = "api_keys"

    project_id: Mapped[str] = mapped_column(String(64), ForeignKey("projects.id"))
    scopes: Mapped[list[str]] = mapped_column(JSON)


class AdminKey(KeyColumns, TenantOwned, Base):
    """A tenant's key for administration, by its permissions."""

    __tablename__ = "admin_keys"

    permissions: Mapped[list[Permission]] = mapped_column(JSON)


class OperatorKey(KeyColumns, PlatformOwned, Base):
    """An operator's key, beside the one in the data folder."""

    __tablename__ = "operator_keys"

    permissions: Mapped[list[Permission]] = mapped_column(JSON)
