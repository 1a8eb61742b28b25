"""The operator's routes for tenants and keys."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from weft.db.dependencies import PageDep, ReadSession, WriteSession
from weft.tenancy import service
from weft.tenancy.auth import require_operator
from weft.tenancy.schemas import (
    KeyCreate,
    TenantCreate,
    key_to_wire,
    new_key_to_wire,
    tenant_to_wire,
)

router = APIRouter(prefix="/admin/v1/tenants", tags=["tenants"])
_reads = [Depends(require_operator("tenants:read"))]
_writes = [Depends(require_operator("tenants:write"))]


@router.post("", dependencies=_writes, status_code=201)
async def create_tenant(body: TenantCreate, session: WriteSession) -> dict[str, object]:
    return tenant_to_wire(await service.create_tenant(session, body.name))


@router.get("", dependencies=_reads)
async def list_tenants(session: ReadSession, page: PageDep) -> dict[str, object]:
    return (await service.list_tenants(session, page)).to_wire(tenant_to_wire)


@router.get("/{tenant}", dependencies=_reads)
async def get_tenant(tenant: str, session: ReadSession) -> dict[str, object]:
    return tenant_to_wire(await service.get_tenant(session, tenant))


@router.delete("/{tenant}", dependencies=_writes)
async def delete_tenant(tenant: str, session: WriteSession) -> dict[str, object]:
    row = await service.delete_tenant(session, tenant)
    return {"id": row.id, "object": "tenant.deleted", "deleted": True}


@router.post("/{tenant}/keys", dependencies=_writes, status_code=201)
async def create_key(
    tenant: str, body: KeyCreate, session: WriteSession, request: Request
) -> dict[str, object]:
    new_key = await service.create_tenant_key(
        session,
        tenant,
        request.app.state.authenticator.pepper,
        name=body.name,
        scopes=body.scopes,
        expires_at=body.expires_at,
    )
    return new_key_to_wire(new_key)


@router.get("/{tenant}/keys", dependencies=_reads)
async def list_keys(tenant: str, session: ReadSession) -> dict[str, object]:
    rows = await service.list_tenant_keys(session, tenant)
    return {"object": "list", "data": [key_to_wire(row) for row in rows], "has_more": False}


@router.delete("/{tenant}/keys/{key_id}", dependencies=_writes)
async def revoke_key(tenant: str, key_id: str, session: WriteSession) -> dict[str, object]:
    return key_to_wire(await service.revoke_tenant_key(session, tenant, key_id))
