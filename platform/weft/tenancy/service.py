"""What can be done with tenants and their projects. Each function works in the caller's
transaction, and tells the audit trail who did it."""

from __future__ import annotations

import re

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Target, record
from weft.db.ids import create_id, now
from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, TenantOwner
from weft.errors import ConflictError, InvalidRequestError, NotFoundError
from weft.tenancy.authority import Maker, audited
from weft.tenancy.key_repository import KeyRepository
from weft.tenancy.models import Project, Tenant
from weft.tenancy.repository import TenantRepository

DEFAULT_PROJECT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,126}")


async def create_tenant(session: AsyncSession, name: str, actor: Maker = None) -> Tenant:
    """A tenant with its default project. `actor` None: whoever owns the data folder."""
    _check_name(name, "tenant", "tnt_")
    repository = TenantRepository(session)
    if await repository.find_tenant(name) is not None:
        raise ConflictError(f"A tenant named '{name}' exists already.", param="name")
    tenant = Tenant(id=create_id("tnt"), name=name, created_at=now())
    repository.add(tenant)
    await repository.flush()
    repository.add(_project(tenant.id, DEFAULT_PROJECT))
    await repository.flush()
    await _record(session, actor, "tenant.created", tenant, {"name": name})
    return tenant


async def get_tenant(session: AsyncSession, id_or_name: str) -> Tenant:
    """NotFoundError where there is no live tenant of this id or name."""
    tenant = await TenantRepository(session).find_tenant(id_or_name)
    if tenant is None:
        raise NotFoundError(f"No tenant '{id_or_name}' exists.")
    return tenant


async def get_owner(session: AsyncSession, id_or_name: str) -> Owner:
    """The tenant as an owner of rows."""
    return TenantOwner((await get_tenant(session, id_or_name)).id)


async def list_tenants(session: AsyncSession, page: PageRequest) -> Page[Tenant]:
    return await TenantRepository(session).list_tenants(page)


async def update_tenant(
    session: AsyncSession, id_or_name: str, *, include_obfuscation: bool, actor: Maker = None
) -> Tenant:
    tenant = await get_tenant(session, id_or_name)
    if tenant.include_obfuscation != include_obfuscation:
        tenant.include_obfuscation = include_obfuscation
        changes: dict[str, object] = {"include_obfuscation": include_obfuscation}
        await _record(session, actor, "tenant.updated", tenant, changes)
    return tenant


async def delete_tenant(session: AsyncSession, id_or_name: str, actor: Maker = None) -> Tenant:
    """The tenant's keys stop working at once; its usage stays on record."""
    tenant = await get_tenant(session, id_or_name)
    tenant.deleted_at = now()
    await KeyRepository(session).revoke_all(TenantOwner(tenant.id), now())
    await _record(session, actor, "tenant.deleted", tenant, {"name": tenant.name})
    return tenant


async def suspend_tenant(session: AsyncSession, id_or_name: str, actor: Maker = None) -> Tenant:
    """Until it is resumed the tenant's keys are refused; requests that run come to their end."""
    tenant = await get_tenant(session, id_or_name)
    if tenant.suspended_at is None:
        tenant.suspended_at = now()
        await _record(session, actor, "tenant.suspended", tenant, {})
    return tenant


async def resume_tenant(session: AsyncSession, id_or_name: str, actor: Maker = None) -> Tenant:
    tenant = await get_tenant(session, id_or_name)
    if tenant.suspended_at is not None:
        tenant.suspended_at = None
        await _record(session, actor, "tenant.resumed", tenant, {})
    return tenant


async def create_project(
    session: AsyncSession, owner: Owner, name: str, actor: Maker = None
) -> Project:
    _check_name(name, "project", "proj_")
    await _check_free(session, owner, name)
    project = _project(owner.tenant_id, name)
    TenantRepository(session).add(project)
    await _record(session, actor, "project.created", project, {"name": name})
    return project


async def get_project(session: AsyncSession, owner: Owner, project_id: str) -> Project:
    """NotFoundError for what does not exist and for another tenant's alike."""
    project = await TenantRepository(session).find_project(project_id, owner)
    if project is None:
        raise NotFoundError(f"No project '{project_id}' exists.")
    return project


async def default_project(session: AsyncSession, owner: Owner) -> Project:
    project = await TenantRepository(session).find_project_by_name(DEFAULT_PROJECT, owner)
    assert project is not None, "every tenant has a default project"
    return project


async def find_project_to_use(
    session: AsyncSession, owner: Owner, id_or_name: str | None
) -> Project:
    """The project in use of this id or name; None: the default one."""
    if id_or_name is None:
        return await default_project(session, owner)
    repository = TenantRepository(session)
    project = await repository.find_project_by_name(id_or_name, owner)
    return project or await get_project(session, owner, id_or_name)


async def rename_project(
    session: AsyncSession, owner: Owner, project_id: str, name: str, actor: Maker = None
) -> Project:
    project = await get_project(session, owner, project_id)
    if project.name == name:
        return project
    if project.archived_at is not None:
        raise ConflictError("The project is archived: it cannot be changed.")
    if project.name == DEFAULT_PROJECT:
        raise ConflictError("The default project keeps its name.", param="name")
    _check_name(name, "project", "proj_")
    await _check_free(session, owner, name)
    project.name = name
    await _record(session, actor, "project.updated", project, {"name": name})
    return project


async def archive_project(
    session: AsyncSession, owner: Owner, project_id: str, actor: Maker = None
) -> Project:
    """Final and idempotent: its keys stop working, its usage stays on record."""
    project = await get_project(session, owner, project_id)
    if project.archived_at is None:
        if project.name == DEFAULT_PROJECT:
            raise ConflictError("The default project cannot be archived.")
        project.archived_at = now()
        await _record(session, actor, "project.archived", project, {})
    return project


def _project(tenant_id: str, name: str) -> Project:
    return Project(id=create_id("proj"), tenant_id=tenant_id, name=name, created_at=now())


async def _check_free(session: AsyncSession, owner: Owner, name: str) -> None:
    if await TenantRepository(session).find_project_by_name(name, owner) is not None:
        raise ConflictError(f"A project named '{name}' exists already.", param="name")


def _check_name(name: str, what: str, id_prefix: str) -> None:
    """Names are told from ids, which begin with the prefix."""
    if not _NAME.fullmatch(name) or name.startswith(id_prefix):
        raise InvalidRequestError(
            f"A {what}'s name is 1 to 127 letters, digits, spaces, '.', '_' or '-', begins with a "
            f"letter or digit, and not with '{id_prefix}'.",
            param="name",
        )


async def _record(
    session: AsyncSession,
    actor: Maker,
    event: str,
    row: Tenant | Project,
    changes: dict[str, object],
) -> None:
    await session.flush()
    tenant_id = row.id if isinstance(row, Tenant) else row.tenant_id
    await record(session, audited(actor), event, Target(row.id, tenant_id), changes)
