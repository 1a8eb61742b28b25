"""Routes for rate limits and quotas: the operator's, a tenant's own, and OpenAI's of a project.

What a tenant may use in all is the operator's; a tenant's administrators divide it among projects,
keys and adapters. A change holds on every worker within seconds.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dependencies import PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.db.paging import PageRequest
from weft.db.scope import Owner
from weft.errors import NotFoundError, PermissionDeniedError
from weft.idempotency.routes import KeyedRoute
from weft.limits import service
from weft.limits.limit_repository import LimitAdminRepository
from weft.limits.models import Limit
from weft.limits.schemas import (
    LimitObject,
    LimitSet,
    ProjectRateLimitObject,
    ProjectRateLimitUpdate,
    try_parse_rate_limit_id,
)
from weft.limits.subjects import Subject, SubjectKind
from weft.registry.subjects import find_subject
from weft.tenancy.auth import require_admin, require_operator
from weft.tenancy.authority import Maker
from weft.tenancy.principal import Operator, TenantAdmin
from weft.tenancy.schemas import Deleted
from weft.tenancy.service import get_owner, get_project

router = APIRouter(tags=["limits"], route_class=KeyedRoute)
_TENANT = "/admin/v1/tenants/{tenant}/limits"
_PLATFORM = "/admin/v1/limits"
_OWN = "/v1/organization/limits"
_OF_PROJECT = "/v1/organization/projects/{project_id}/rate_limits"
_operator_reads = [Depends(require_operator("limits:read"))]
OperatorWriter = Annotated[Operator, Depends(require_operator("limits:write"))]
AdminReader = Annotated[TenantAdmin, Depends(require_admin("limits:read"))]
AdminWriter = Annotated[TenantAdmin, Depends(require_admin("limits:write"))]


def check_own(kind: SubjectKind) -> None:
    """PermissionDeniedError for what a tenant's administrators cannot change."""
    if kind in ("tenant", "base"):
        raise PermissionDeniedError(f"What a {kind} may use is the operator's to say.")


async def _list(
    session: AsyncSession, owner: Owner | None, page: PageRequest
) -> ListOf[LimitObject]:
    found = await LimitAdminRepository(session, owner).list_rows(Limit, page)
    return ListOf[LimitObject].of(found, LimitObject.of)


async def _set(
    session: AsyncSession, owner: Owner | None, body: LimitSet, maker: Maker
) -> LimitObject:
    subject = await find_subject(session, owner, body.subject.kind, body.subject.id)
    row = await service.set_limit(
        session, owner, subject, body.values, maker, model=body.model or ""
    )
    return LimitObject.of(row)


async def _delete(
    session: AsyncSession, owner: Owner | None, limit_id: str, maker: Maker
) -> Deleted:
    row = await service.get_row(session, owner, Limit, limit_id)
    if isinstance(maker, TenantAdmin):
        check_own(row.subject_kind)
    await service.delete_row(session, owner, row, maker)
    return Deleted(id=row.id, object="limit.deleted")


@router.get(_PLATFORM, dependencies=_operator_reads)
async def list_base_limits(session: ReadSession, page: PageDep) -> ListOf[LimitObject]:
    """Of the bases, over all tenants."""
    return await _list(session, None, page)


@router.put(_PLATFORM)
async def set_base_limit(
    writer: OperatorWriter, body: LimitSet, session: WriteSession
) -> LimitObject:
    return await _set(session, None, body, writer)


@router.delete(_PLATFORM + "/{limit_id}")
async def delete_base_limit(
    writer: OperatorWriter, limit_id: str, session: WriteSession
) -> Deleted:
    return await _delete(session, None, limit_id, writer)


@router.get(_TENANT, dependencies=_operator_reads)
async def list_tenant_limits(
    tenant: str, session: ReadSession, page: PageDep
) -> ListOf[LimitObject]:
    return await _list(session, await get_owner(session, tenant), page)


@router.put(_TENANT)
async def set_tenant_limit(
    writer: OperatorWriter, tenant: str, body: LimitSet, session: WriteSession
) -> LimitObject:
    """Of the tenant, or of one of its projects, keys and adapters."""
    return await _set(session, await get_owner(session, tenant), body, writer)


@router.delete(_TENANT + "/{limit_id}")
async def delete_tenant_limit(
    writer: OperatorWriter, tenant: str, limit_id: str, session: WriteSession
) -> Deleted:
    return await _delete(session, await get_owner(session, tenant), limit_id, writer)


@router.get(_OWN)
async def list_own_limits(
    admin: AdminReader, session: ReadSession, page: PageDep
) -> ListOf[LimitObject]:
    return await _list(session, admin, page)


@router.put(_OWN)
async def set_own_limit(admin: AdminWriter, body: LimitSet, session: WriteSession) -> LimitObject:
    """Of a project, a key or an adapter."""
    check_own(body.subject.kind)
    return await _set(session, admin, body, admin)


@router.delete(_OWN + "/{limit_id}")
async def delete_own_limit(admin: AdminWriter, limit_id: str, session: WriteSession) -> Deleted:
    return await _delete(session, admin, limit_id, admin)


@router.get(_OF_PROJECT)
async def list_project_rate_limits(
    admin: AdminReader, project_id: str, session: ReadSession
) -> ListOf[ProjectRateLimitObject]:
    """Of single models; all of them, as there are as many as models at most."""
    project = await get_project(session, admin, project_id)
    found = await LimitAdminRepository(session, admin).list_of_models(project.id)
    return ListOf[ProjectRateLimitObject].of(found, ProjectRateLimitObject.of)


@router.post(_OF_PROJECT + "/{rate_limit_id:path}")
async def update_project_rate_limit(
    admin: AdminWriter,
    project_id: str,
    rate_limit_id: str,
    body: ProjectRateLimitUpdate,
    session: WriteSession,
) -> ProjectRateLimitObject:
    """`rl-<model>`, the model as requests name it, without a version; what is left out stays."""
    project = await get_project(session, admin, project_id)
    model = try_parse_rate_limit_id(rate_limit_id)
    if model is None:
        raise NotFoundError(f"No rate limit '{rate_limit_id}' exists; one is called 'rl-<model>'.")
    subject = Subject("project", project.id)
    known = await LimitAdminRepository(session, admin).find_limit(subject, model)
    values = {} if known is None else {name: getattr(known, name) for name in service.RATES}
    given = {
        "requests_per_minute": body.max_requests_per_1_minute,
        "tokens_per_minute": body.max_tokens_per_1_minute,
    }
    values |= {name: value for name, value in given.items() if value is not None}
    row = await service.set_limit(session, admin, subject, values, admin, model=model)
    return ProjectRateLimitObject.of(row)
