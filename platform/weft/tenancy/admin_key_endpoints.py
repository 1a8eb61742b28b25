"""Routes for keys with permissions: a tenant's admin keys, shaped as OpenAI's, and operators'."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from weft.db.dependencies import PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.idempotency.routes import KeyedRoute
from weft.tenancy import key_service
from weft.tenancy.auth import require_admin, require_operator
from weft.tenancy.dependencies import AuthenticatorDep, changes_identities
from weft.tenancy.key_repository import KeyRepository
from weft.tenancy.key_schemas import (
    AdminKeyObject,
    NewAdminKeyObject,
    NewOperatorKeyObject,
    OperatorKeyObject,
    PermissionKeyCreate,
    PermissionKeyUpdate,
    Rotate,
    admin_key_object,
    expires_at,
    new_admin_key_object,
    new_operator_key_object,
    operator_key_object,
)
from weft.tenancy.principal import Operator, TenantAdmin
from weft.tenancy.schemas import Deleted

router = APIRouter(tags=["admin keys"], route_class=KeyedRoute)
_ADMIN = "/v1/organization/admin_api_keys"
_OPERATOR = "/admin/v1/operator_keys"
AdminReader = Annotated[TenantAdmin, Depends(require_admin("admin_keys:read"))]
AdminWriter = Annotated[TenantAdmin, Depends(require_admin("admin_keys:write"))]
_operator_reads = [Depends(require_operator("platform:read"))]
OperatorWriter = Annotated[Operator, Depends(require_operator("platform:write"))]


@router.get(_ADMIN)
async def list_admin_keys(
    admin: AdminReader, session: ReadSession, page: PageDep
) -> ListOf[AdminKeyObject]:
    found = await KeyRepository(session).list_admin_keys(admin, page)
    return ListOf[AdminKeyObject].of(found, admin_key_object)


@router.post(_ADMIN, status_code=201, dependencies=[changes_identities])
async def create_admin_key(
    admin: AdminWriter,
    body: PermissionKeyCreate,
    session: WriteSession,
    authenticator: AuthenticatorDep,
) -> NewAdminKeyObject:
    """A key with permissions that its maker has; its secret is shown this once."""
    key = await key_service.create_admin_key(
        session,
        admin.tenant_id,
        authenticator.pepper,
        admin,
        name=body.name,
        permissions=body.granted(),
        expires_at=expires_at(body.expires_in_seconds),
    )
    return new_admin_key_object(key)


@router.get(_ADMIN + "/{key_id}")
async def get_admin_key(admin: AdminReader, key_id: str, session: ReadSession) -> AdminKeyObject:
    return admin_key_object(await key_service.get_admin_key(session, admin, key_id))


@router.post(_ADMIN + "/{key_id}:rotate", dependencies=[changes_identities])
async def rotate_admin_key(
    admin: AdminWriter,
    key_id: str,
    body: Rotate,
    session: WriteSession,
    authenticator: AuthenticatorDep,
) -> NewAdminKeyObject:
    """A new secret, shown this once; the former one stays right for `grace_s`."""
    row = await key_service.get_admin_key(session, admin, key_id)
    rotated = await key_service.rotate(session, row, authenticator.pepper, admin, body.grace_s)
    return new_admin_key_object(rotated)


@router.post(_ADMIN + "/{key_id}", dependencies=[changes_identities])
async def update_admin_key(
    admin: AdminWriter, key_id: str, body: PermissionKeyUpdate, session: WriteSession
) -> AdminKeyObject:
    row = await key_service.get_admin_key(session, admin, key_id)
    await key_service.change(session, row, admin, body.to_change())
    return admin_key_object(row)


@router.delete(_ADMIN + "/{key_id}", dependencies=[changes_identities])
async def revoke_admin_key(admin: AdminWriter, key_id: str, session: WriteSession) -> Deleted:
    row = await key_service.get_admin_key(session, admin, key_id)
    await key_service.revoke(session, row, admin)
    return Deleted(id=row.id, object="organization.admin_api_key.deleted")


@router.get(_OPERATOR, dependencies=_operator_reads)
async def list_operator_keys(session: ReadSession, page: PageDep) -> ListOf[OperatorKeyObject]:
    """Without the key of the data folder, which is in no table."""
    found = await KeyRepository(session).list_operator_keys(page)
    return ListOf[OperatorKeyObject].of(found, operator_key_object)


@router.post(_OPERATOR, status_code=201, dependencies=[changes_identities])
async def create_operator_key(
    operator: OperatorWriter,
    body: PermissionKeyCreate,
    session: WriteSession,
    authenticator: AuthenticatorDep,
) -> NewOperatorKeyObject:
    """A key with permissions that its maker has; its secret is shown this once."""
    key = await key_service.create_operator_key(
        session,
        authenticator.pepper,
        operator,
        name=body.name,
        permissions=body.granted(),
        expires_at=expires_at(body.expires_in_seconds),
    )
    return new_operator_key_object(key)


@router.get(_OPERATOR + "/{key_id}", dependencies=_operator_reads)
async def get_operator_key(key_id: str, session: ReadSession) -> OperatorKeyObject:
    return operator_key_object(await key_service.get_operator_key(session, key_id))


@router.post(_OPERATOR + "/{key_id}:rotate", dependencies=[changes_identities])
async def rotate_operator_key(
    operator: OperatorWriter,
    key_id: str,
    body: Rotate,
    session: WriteSession,
    authenticator: AuthenticatorDep,
) -> NewOperatorKeyObject:
    """A new secret, shown this once; the former one stays right for `grace_s`."""
    row = await key_service.get_operator_key(session, key_id)
    rotated = await key_service.rotate(session, row, authenticator.pepper, operator, body.grace_s)
    return new_operator_key_object(rotated)


@router.post(_OPERATOR + "/{key_id}", dependencies=[changes_identities])
async def update_operator_key(
    operator: OperatorWriter, key_id: str, body: PermissionKeyUpdate, session: WriteSession
) -> OperatorKeyObject:
    row = await key_service.get_operator_key(session, key_id)
    await key_service.change(session, row, operator, body.to_change())
    return operator_key_object(row)


@router.delete(_OPERATOR + "/{key_id}", dependencies=[changes_identities])
async def revoke_operator_key(
    operator: OperatorWriter, key_id: str, session: WriteSession
) -> Deleted:
    row = await key_service.get_operator_key(session, key_id)
    await key_service.revoke(session, row, operator)
    return Deleted(id=row.id, object="operator_key.deleted")
