"""A tenant's routes for its projects and their keys, shaped as OpenAI's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from weft.db.dependencies import PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.idempotency.routes import KeyedRoute
from weft.tenancy import key_service, service
from weft.tenancy.auth import require_admin
from weft.tenancy.dependencies import AuthenticatorDep, changes_identities
from weft.tenancy.key_repository import KeyRepository
from weft.tenancy.key_schemas import (
    NewProjectKeyObject,
    ProjectKeyCreate,
    ProjectKeyObject,
    ProjectKeyUpdate,
    Rotate,
    expires_at,
    new_project_key_object,
    project_key_object,
)
from weft.tenancy.principal import TenantAdmin
from weft.tenancy.repository import TenantRepository
from weft.tenancy.schemas import Deleted, ProjectName, ProjectObject

router = APIRouter(prefix="/v1/organization/projects", tags=["projects"], route_class=KeyedRoute)
_KEYS = "/{project_id}/api_keys"
ProjectReader = Annotated[TenantAdmin, Depends(require_admin("projects:read"))]
ProjectWriter = Annotated[TenantAdmin, Depends(require_admin("projects:write"))]
KeyReader = Annotated[TenantAdmin, Depends(require_admin("keys:read"))]
KeyWriter = Annotated[TenantAdmin, Depends(require_admin("keys:write"))]


@router.get("")
async def list_projects(
    admin: ProjectReader,
    session: ReadSession,
    page: PageDep,
    include_archived: Annotated[bool, Query()] = False,
) -> ListOf[ProjectObject]:
    found = await TenantRepository(session).list_projects(
        admin, page, include_archived=include_archived
    )
    return ListOf[ProjectObject].of(found, ProjectObject.of)


@router.post("", status_code=201)
async def create_project(
    admin: ProjectWriter, body: ProjectName, session: WriteSession
) -> ProjectObject:
    return ProjectObject.of(await service.create_project(session, admin, body.name, admin))


@router.get("/{project_id}")
async def get_project(admin: ProjectReader, project_id: str, session: ReadSession) -> ProjectObject:
    return ProjectObject.of(await service.get_project(session, admin, project_id))


@router.post("/{project_id}")
async def update_project(
    admin: ProjectWriter, project_id: str, body: ProjectName, session: WriteSession
) -> ProjectObject:
    row = await service.rename_project(session, admin, project_id, body.name, admin)
    return ProjectObject.of(row)


@router.post("/{project_id}/archive", dependencies=[changes_identities])
async def archive_project(
    admin: ProjectWriter, project_id: str, session: WriteSession
) -> ProjectObject:
    """Final: its keys stop working at once; its usage stays on record."""
    return ProjectObject.of(await service.archive_project(session, admin, project_id, admin))


@router.get(_KEYS)
async def list_keys(
    admin: KeyReader, project_id: str, session: ReadSession, page: PageDep
) -> ListOf[ProjectKeyObject]:
    project = await service.get_project(session, admin, project_id)
    found = await KeyRepository(session).list_project_keys(admin, page, project.id)
    return ListOf[ProjectKeyObject].of(found, project_key_object)


@router.post(_KEYS, status_code=201, dependencies=[changes_identities])
async def create_key(
    admin: KeyWriter,
    project_id: str,
    body: ProjectKeyCreate,
    session: WriteSession,
    authenticator: AuthenticatorDep,
) -> NewProjectKeyObject:
    """A key with scopes that its maker may give; its secret is shown this once."""
    key = await key_service.create_project_key(
        session,
        await service.get_project(session, admin, project_id),
        authenticator.pepper,
        admin,
        name=body.name,
        scopes=body.scopes,
        expires_at=expires_at(body.expires_in_seconds),
    )
    return new_project_key_object(key)


@router.get(_KEYS + "/{key_id}")
async def get_key(
    admin: KeyReader, project_id: str, key_id: str, session: ReadSession
) -> ProjectKeyObject:
    return project_key_object(await key_service.get_project_key(session, admin, key_id, project_id))


@router.post(_KEYS + "/{key_id}:rotate", dependencies=[changes_identities])
async def rotate_key(
    admin: KeyWriter,
    project_id: str,
    key_id: str,
    body: Rotate,
    session: WriteSession,
    authenticator: AuthenticatorDep,
) -> NewProjectKeyObject:
    """A new secret, shown this once; the former one stays right for `grace_s`."""
    row = await key_service.get_project_key(session, admin, key_id, project_id)
    rotated = await key_service.rotate(session, row, authenticator.pepper, admin, body.grace_s)
    return new_project_key_object(rotated)


@router.post(_KEYS + "/{key_id}", dependencies=[changes_identities])
async def update_key(
    admin: KeyWriter, project_id: str, key_id: str, body: ProjectKeyUpdate, session: WriteSession
) -> ProjectKeyObject:
    row = await key_service.get_project_key(session, admin, key_id, project_id)
    await key_service.change(session, row, admin, body.to_change())
    return project_key_object(row)


@router.delete(_KEYS + "/{key_id}", dependencies=[changes_identities])
async def revoke_key(
    admin: KeyWriter, project_id: str, key_id: str, session: WriteSession
) -> Deleted:
    row = await key_service.get_project_key(session, admin, key_id, project_id)
    await key_service.revoke(session, row, admin)
    return Deleted(id=row.id, object="organization.project.api_key.deleted")
