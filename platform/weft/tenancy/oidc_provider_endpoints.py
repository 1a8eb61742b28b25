"""The operator's routes for OpenID providers and the domains that they vouch for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from weft.audit import Target, record
from weft.db.dependencies import DatabaseDep, PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.db.paging import Page
from weft.idempotency.claims import Answer
from weft.idempotency.routes import HeldKey, KeyedRoute
from weft.tenancy import oidc_providers as providers
from weft.tenancy import service
from weft.tenancy.acting import actor_of
from weft.tenancy.auth import require_operator
from weft.tenancy.emails import check_person_name
from weft.tenancy.oidc_endpoints import redirect_uri
from weft.tenancy.oidc_repository import OidcRepository
from weft.tenancy.oidc_schemas import (
    DomainObject,
    DomainSet,
    ProviderCreate,
    ProviderObject,
    ProviderUpdate,
)
from weft.tenancy.principal import Operator
from weft.tenancy.schemas import Deleted
from weft.tenancy.sign_in import SignInDep

router = APIRouter(prefix="/admin/v1/oidc_providers", tags=["people"], route_class=KeyedRoute)
Reader = Annotated[Operator, Depends(require_operator("platform:read"))]
Writer = Annotated[Operator, Depends(require_operator("platform:write"))]


@router.post("", status_code=201)
async def create_provider(
    operator: Writer,
    body: ProviderCreate,
    request: Request,
    signing_in: SignInDep,
    database: DatabaseDep,
    keyed: HeldKey,
) -> ProviderObject:
    """Trust a provider, once it has shown its configuration. Register `redirect_uri` there."""
    await signing_in.oidc.documents.metadata(body.issuer)
    async with database.writing() as session:
        row = await providers.create_provider(
            session,
            signing_in.encryption_key,
            name=body.name,
            issuer=body.issuer,
            client_id=body.client_id,
            client_secret=body.client_secret,
            role_claim=body.role_claim,
            role_map=body.role_map,
        )
        changes = {"issuer": row.issuer, "client": row.client_id, "role_map": row.role_map}
        await record(session, actor_of(operator), "oidc_provider.created", Target(row.id), changes)
        made = ProviderObject.of(row, redirect_uri(signing_in, request, row.id))
        if keyed is not None:
            await keyed.keep(session, Answer.of(201, made))
    return made


@router.get("")
async def list_providers(
    _operator: Reader,
    request: Request,
    session: ReadSession,
    page: PageDep,
    signing_in: SignInDep,
) -> ListOf[ProviderObject]:
    found = await OidcRepository(session).list_providers(page)
    return ListOf[ProviderObject].of(
        found, lambda row: ProviderObject.of(row, redirect_uri(signing_in, request, row.id))
    )


@router.get("/{provider_id}")
async def get_provider(
    _operator: Reader,
    provider_id: str,
    request: Request,
    session: ReadSession,
    signing_in: SignInDep,
) -> ProviderObject:
    row = await providers.get_provider(session, provider_id)
    return ProviderObject.of(row, redirect_uri(signing_in, request, row.id))


@router.post("/{provider_id}")
async def update_provider(
    operator: Writer,
    provider_id: str,
    body: ProviderUpdate,
    request: Request,
    session: WriteSession,
    signing_in: SignInDep,
) -> ProviderObject:
    """Change what is given. Another issuer or client is another provider."""
    row = await providers.get_provider(session, provider_id)
    given = body.model_fields_set
    if body.role_map is not None:
        providers.check_role_map(body.role_map)
        row.role_map = body.role_map
    if "role_claim" in given:
        row.role_claim = body.role_claim
    if body.name is not None:
        row.name = check_person_name(body.name)
    if "client_secret" in given:
        providers.set_secret(row, signing_in.encryption_key, body.client_secret)
    changes = {"changed": sorted(given), "role_map": row.role_map}
    await record(session, actor_of(operator), "oidc_provider.updated", Target(row.id), changes)
    return ProviderObject.of(row, redirect_uri(signing_in, request, row.id))


@router.delete("/{provider_id}")
async def delete_provider(operator: Writer, provider_id: str, session: WriteSession) -> Deleted:
    """Trust it no more. Who signed in by it is signed out."""
    row = await providers.delete_provider(session, provider_id)
    await record(session, actor_of(operator), "oidc_provider.deleted", Target(row.id), {})
    return Deleted(id=row.id, object="oidc_provider.deleted")


@router.get("/{provider_id}/domains")
async def list_domains(
    _operator: Reader, provider_id: str, session: ReadSession
) -> ListOf[DomainObject]:
    await providers.get_provider(session, provider_id)
    rows = await OidcRepository(session).list_domains(provider_id)
    return ListOf[DomainObject].of(Page(rows, has_more=False), DomainObject.of)


@router.put("/{provider_id}/domains/{domain}")
async def set_domain(
    operator: Writer, provider_id: str, domain: str, body: DomainSet, session: WriteSession
) -> DomainObject:
    """Let the provider vouch for a tenant's people at a domain. Verify first that it is theirs."""
    row = await providers.set_domain(
        session,
        await providers.get_provider(session, provider_id),
        domain,
        (await service.get_tenant(session, body.tenant)).id,
        admission=body.admission,
        default_role=body.default_role,
    )
    changes = {"domain": domain, "provider": provider_id, **body.model_dump()}
    target = Target(domain, row.tenant_id)
    await record(session, actor_of(operator), "oidc_domain.updated", target, changes)
    return DomainObject.of(row)


@router.delete("/{provider_id}/domains/{domain}")
async def delete_domain(
    operator: Writer, provider_id: str, domain: str, session: WriteSession
) -> Deleted:
    """Take a domain from the provider. Its people are signed out."""
    provider = await providers.get_provider(session, provider_id)
    row = await providers.delete_domain(session, provider, domain)
    target = Target(domain, row.tenant_id)
    changes = {"provider": provider_id}
    await record(session, actor_of(operator), "oidc_domain.deleted", target, changes)
    return Deleted(id=domain, object="oidc_provider.domain.deleted")
