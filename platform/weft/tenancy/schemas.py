"""Tenants and keys on the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from weft.tenancy.models import ApiKey, Tenant
from weft.tenancy.principal import ALL_SCOPES
from weft.tenancy.service import NewKey


class TenantCreate(BaseModel):
    """Body of `POST /admin/v1/tenants`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str


class KeyCreate(BaseModel):
    """Body of `POST /admin/v1/tenants/{id}/keys`; `expires_at` is in Unix seconds."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(default="", max_length=128)
    scopes: list[str] = Field(default_factory=lambda: list[str](ALL_SCOPES), max_length=16)
    expires_at: int | None = Field(default=None, le=2**40)


def tenant_to_wire(tenant: Tenant) -> dict[str, object]:
    return {
        "id": tenant.id,
        "object": "tenant",
        "name": tenant.name,
        "created_at": tenant.created_at,
    }


def key_to_wire(row: ApiKey) -> dict[str, object]:
    """A key without its secret."""
    return {
        "id": row.id,
        "object": "api_key",
        "tenant_id": row.tenant_id,
        "project_id": row.project_id,
        "name": row.name,
        "redacted_value": f"weft_live_{row.id}_...{row.last4}",
        "scopes": row.scopes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
    }


def new_key_to_wire(key: NewKey) -> dict[str, object]:
    """A key with its secret: the only time that it is shown."""
    return {**key_to_wire(key.row), "value": key.text}
