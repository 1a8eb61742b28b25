"""The operator's routes for tenants, and for the keys that it gives them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from weft.db.dependencies import PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.idempotency.routes import KeyedRoute
from weft.tenancy import key_service, service
from weft.tenancy.auth import require_operator
from weft.tenancy.dependencies import AuthenticatorDep, changes_identities
from weft.tenancy.key_repository import KeyRepository
from weft.tenancy.key_schemas import (
    AdminKeyObject,
    KeyCreate,
    NewAdminKeyObject,
    NewProjectKeyObject,
    PermissionKeyCreate,
    ProjectKeyObject,
    admin_key_object,
    expires_at,
    new_admin_key_object,
    new_project_key_object,
    project_key_object,
)
from weft.tenancy.principal import Operator
from weft.tenancy.schemas import Deleted, TenantCreate, TenantObject, TenantUpdate

router = APIRouter(prefix="/admin/v1/tenants", tags=["tenants"], route_class=KeyedRoute)
_reads = [Depends(require_operator("tenants:read"))]
Writer = Annotated[Operator, Depends(require_operator("tenants:write"))]


@router.post("", status_code=201)
async def create_tenant(writer: Writer, body: TenantCreate, session: WriteSession) -> TenantObject:
    return TenantObject.of(await service.create_tenant(session, body.name, writer))


@router.get("", dependencies=_reads)
async def list_tenants(session: ReadSession, page: PageDep) -> ListOf[TenantObject]:
    return ListOf[TenantObject].of(await service.list_tenants(session, page), TenantObject.of)


@router.get("/{tenant}", dependencies=_reads)
async def get_tenant(tenant: str, session: ReadSession) -> TenantObject:
    return TenantObject.of(await service.get_tenant(session, tenant))


@router.delete("/{tenant}", dependencies=[changes_identities])
async def delete_tenant(writer: Writer, tenant: str, session: WriteSession) -> Deleted:
    """Its keys stop working at once; its usage stays on record."""
    row = await service.delete_tenant(session, tenant, writer)
    return Deleted(id=row.id, object="tenant.deleted")


@router.post("/{tenant}:suspend", dependencies=[changes_identities])
async def suspend_tenant(writer: Writer, tenant: str, session: WriteSession) -> TenantObject:
    """Refuse its keys until it is resumed; requests that run come to their end."""
    return TenantObject.of(await service.suspend_tenant(session, tenant, writer))


@router.post("/{tenant}:resume", dependencies=[changes_identities])
async def resume_tenant(writer: Writer, tenant: str, session: WriteSession) -> TenantObject:
    return TenantObject.of(await service.resume_tenant(session, tenant, writer))


@router.post("/{tenant}", dependencies=[changes_identities])  # after :suspend and :resume
async def update_tenant(
    writer: Writer, tenant: str, body: TenantUpdate, session: WriteSession
) -> TenantObject:
    """Whether its streams are padded where a request does not say; for what runs this holds on."""
    row = await service.update_tenant(
        session, tenant, include_obfuscation=body.include_obfuscation, actor=writer
    )
    return TenantObject.of(row)


@router.post("/{tenant}/keys", status_code=201, dependencies=[changes_identities])
async def create_key(
    writer: Writer,
    tenant: str,
    body: KeyCreate,
    session: WriteSession,
    authenticator: AuthenticatorDep,
) -> NewProjectKeyObject:
    """A key of the tenant's default project."""
    owner = await service.get_owner(session, tenant)
    key = await key_service.create_project_key(
        session,
        await service.default_project(session, owner),
        authenticator.pepper,
        writer,
        name=body.name,
        scopes=body.scopes,
        expires_at=body.expires_at,
    )
    return new_project_key_object(key)


@router.get("/{tenant}/keys", dependencies=_reads)
async def list_keys(tenant: str, session: ReadSession, page: PageDep) -> ListOf[ProjectKeyObject]:
    """Of all of the tenant's projects."""
    owner = await service.get_owner(session, tenant)
    found = await KeyRepository(session).list_project_keys(owner, page)
    return ListOf[ProjectKeyObject].of(found, project_key_object)


@router.delete("/{tenant}/keys/{key_id}", dependencies=[changes_identities])
async def revoke_key(
    writer: Writer, tenant: str, key_id: str, session: WriteSession
) -> ProjectKeyObject:
    owner = await service.get_owner(session, tenant)
    row = await key_service.get_project_key(session, owner, key_id)
    await key_service.revoke(session, row, writer)
    return project_key_object(row)


@router.post("/{tenant}/admin_api_keys", status_code=201, dependencies=[changes_identities])
async def create_admin_key(
    writer: Writer,
    tenant: str,
    body: PermissionKeyCreate,
    session: WriteSession,
    authenticator: AuthenticatorDep,
) -> NewAdminKeyObject:
    """A tenant's first admin key: with it, the tenant makes its own."""
    key = await key_service.create_admin_key(
        session,
        (await service.get_owner(session, tenant)).tenant_id,
        authenticator.pepper,
        writer,
        name=body.name,
        permissions=body.granted(),
        expires_at=expires_at(body.expires_in_seconds),
    )
    return new_admin_key_object(key)


@router.get("/{tenant}/admin_api_keys", dependencies=_reads)
async def list_admin_keys(
    tenant: str, session: ReadSession, page: PageDep
) -> ListOf[AdminKeyObject]:
    owner = await service.get_owner(session, tenant)
    found = await KeyRepository(session).list_admin_keys(owner, page)
    return ListOf[AdminKeyObject].of(found, admin_key_object)


@router.delete("/{tenant}/admin_api_keys/{key_id}", dependencies=[changes_identities])
async def revoke_admin_key(
    writer: Writer, tenant: str, key_id: str, session: WriteSession
) -> AdminKeyObject:
    owner = await service.get_owner(session, tenant)
    row = await key_service.get_admin_key(session, owner, key_id)
    await key_service.revoke(session, row, writer)
    return admin_key_object(row)
