"""Providers and domains on the wire. A client's secret goes in and never out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from weft.db.lists import ListItem
from weft.tenancy.schemas import Body
from weft.tenancy.user_models import OidcDomain, OidcProvider

Claim = Annotated[str, StringConstraints(min_length=1, max_length=255)]
RoleMap = Annotated[dict[Claim, Claim], Field(max_length=100)]


class ProviderCreate(Body):
    """Body of `POST /admin/v1/oidc_providers`; `role_map`: our roles by values of `role_claim`."""

    name: str = Field(default="", max_length=128)
    issuer: str = Field(max_length=512)
    client_id: Claim
    client_secret: str | None = Field(default=None, min_length=1, max_length=1024)
    role_claim: Claim | None = None
    role_map: RoleMap = Field(default_factory=dict)


class ProviderUpdate(Body):
    """Body of `POST /admin/v1/oidc_providers/{id}`: what is left out stays as it is."""

    name: str | None = Field(default=None, max_length=128)
    client_secret: str | None = Field(default=None, min_length=1, max_length=1024)
    role_claim: Claim | None = None
    role_map: RoleMap | None = None


class DomainSet(Body):
    """Body of `PUT /admin/v1/oidc_providers/{id}/domains/{domain}`; `tenant`: id or name."""

    tenant: str = Field(max_length=128)
    admission: Literal["jit", "invite"] = "invite"
    default_role: str = Field(default="read-only", max_length=32)


class ProviderObject(ListItem):
    """A provider. `redirect_uri` is to be registered there."""

    object: Literal["oidc_provider"] = "oidc_provider"
    name: str
    issuer: str
    client_id: str
    has_secret: bool
    role_claim: str | None
    role_map: dict[str, str]
    redirect_uri: str
    created_at: int

    @classmethod
    def of(cls, row: OidcProvider, redirect_uri: str) -> ProviderObject:
        return cls(
            id=row.id,
            name=row.name,
            issuer=row.issuer,
            client_id=row.client_id,
            has_secret=row.sealed_secret is not None,
            role_claim=row.role_claim,
            role_map=row.role_map,
            redirect_uri=redirect_uri,
            created_at=row.created_at,
        )


class DomainObject(ListItem):
    """A domain whose people a provider vouches for; its name is its id."""

    object: Literal["oidc_provider.domain"] = "oidc_provider.domain"
    provider_id: str
    tenant_id: str
    admission: Literal["jit", "invite"]
    default_role: str
    created_at: int

    @classmethod
    def of(cls, row: OidcDomain) -> DomainObject:
        return cls(
            id=row.domain,
            provider_id=row.provider_id,
            tenant_id=row.tenant_id,
            admission="jit" if row.admission == "jit" else "invite",
            default_role=row.default_role,
            created_at=row.created_at,
        )
