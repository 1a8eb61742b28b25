"""Tables of adapters, versions and aliases. Deleted rows stay: usage events refer to them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from weft.db.base import Base, PlatformOwned, TenantOwned


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


class VersionState(StrEnum):
    """uploading -> validating -> ready | rejected -> archived -> purged."""

    UPLOADING = "uploading"  # its source is being read
    VALIDATING = "validating"  # its bytes are here, and being judged or stored
    READY = "ready"
    REJECTED = "rejected"  # the report says why
    ARCHIVED = "archived"  # deleted; the files are kept for a while
    PURGED = "purged"  # the files are gone, unless another version has the same


class AdapterVersion(TenantOwned, Base):
    """One immutable upload.

    The digest is known, and committed here, before the first byte reaches the store: no file of the
    store is without a row that leads to it.
    """

    __tablename__ = "adapter_versions"
    __table_args__ = (
        Index("uq_adapter_versions_adapter_id_number", "adapter_id", "number", unique=True),
        Index("ix_adapter_versions_adapter_id_digest", "adapter_id", "digest"),
        Index("ix_adapter_versions_digest", "digest"),
        Index("ix_adapter_versions_state", "state"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(String(64), ForeignKey("adapters.id"))
    number: Mapped[int]
    digest: Mapped[str | None] = mapped_column(String(80))
    base_digest: Mapped[str] = mapped_column(String(80))
    state: Mapped[str] = mapped_column(String(16))
    num_bytes: Mapped[int]
    ranks: Mapped[list[int]] = mapped_column(JSON)
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    source: Mapped[dict[str, Any]] = mapped_column(JSON)
    card: Mapped[dict[str, Any]] = mapped_column(JSON)
    is_pinned: Mapped[bool]
    num_attempts: Mapped[int]
    created_at: Mapped[int]
    archived_at: Mapped[int | None]


class AdapterAlias(TenantOwned, Base):
    """A movable pointer to a version."""

    __tablename__ = "adapter_aliases"

    adapter_id: Mapped[str] = mapped_column(String(64), ForeignKey("adapters.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    version_id: Mapped[str] = mapped_column(String(64), ForeignKey("adapter_versions.id"))
    updated_at: Mapped[int]


class PurgingDigest(PlatformOwned, Base):
    """Files that are being removed from the store; nothing is stored under this digest meanwhile.

    It belongs to no tenant: the same bytes of two tenants are stored once.
    """

    __tablename__ = "purging_digests"

    digest: Mapped[str] = mapped_column(String(80), primary_key=True)
    started_at: Mapped[int]


class Upload(TenantOwned, Base):
    """A file that comes in parts, in the shape of OpenAI's uploads."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    filename: Mapped[str] = mapped_column(String(255))
    mime_type: Mapped[str] = mapped_column(String(255))
    num_bytes: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    # of the object store, where it is one that assembles parts
    remote_id: Mapped[str | None] = mapped_column(Text)
    # also those that never arrived: no number is given twice
    num_begun_parts: Mapped[int]
    # the ids of the parts in their order, once complete
    part_ids: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[int]
    expires_at: Mapped[int] = mapped_column(index=True)


class UploadPart(TenantOwned, Base):
    """One part that has arrived whole."""

    __tablename__ = "upload_parts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(String(64), ForeignKey("uploads.id"), index=True)
    num_bytes: Mapped[int]
    number: Mapped[int]
    # what the object store calls the part's bytes, where it is one
    etag: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int]
