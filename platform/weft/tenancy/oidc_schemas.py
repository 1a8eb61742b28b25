"""Providers and domains on the wire. A client's secret goes in and never out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from weft.tenancy.user_models import OidcDomain, OidcProvider

Claim = Annotated[str, StringConstraints(min_length=1, max_length=255)]
RoleMap = Annotated[dict[Claim, Claim], Field(max_length=100)]


class ProviderCreate(BaseModel):
    """Body of `POST /admin/v1/oidc_providers`; `role_map`: our roles by values of `role_claim`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(default="", max_length=128)
    issuer: str = Field(max_length=512)
    client_id: Claim
    client_secret: str | None = Field(default=None, min_length=1, max_length=1024)
    role_claim: Claim | None = None
    role_map: RoleMap = Field(default_factory=dict)


class ProviderUpdate(BaseModel):
    """Body of `POST /admin/v1/oidc_providers/{id}`: what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str | None = Field(default=None, max_length=128)
    client_secret: str | None = Field(default=None, min_length=1, max_length=1024)
    role_claim: Claim | None = None
    role_map: RoleMap | None = None


class DomainSet(BaseModel):
    """Body of `PUT /admin/v1/oidc_providers/{id}/domains/{domain}`; `tenant`: id or name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tenant: str = Field(max_length=128)
    admission: Literal["jit", "invite"] = "invite"
    default_role: str = Field(default="read-only", max_length=32)


def provider_to_wire(row: OidcProvider) -> dict[str, object]:
    return {
        "id": row.id,
        "object": "oidc_provider",
        "name": row.name,
        "issuer": row.issuer,
        "client_id": row.client_id,
        "has_secret": row.sealed_secret is not None,
        "role_claim": row.role_claim,
        "role_map": row.role_map,
        "created_at": row.created_at,
    }


def domain_to_wire(row: OidcDomain) -> dict[str, object]:
    return {
        "id": row.domain,
        "object": "oidc_provider.domain",
        "provider_id": row.provider_id,
        "tenant_id": row.tenant_id,
        "admission": row.admission,
        "default_role": row.default_role,
        "created_at": row.created_at,
    }
