"""Routes for budgets: the operator's, and a tenant's for its projects, keys and adapters."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dependencies import PageDep, ReadSession, WriteSession
from weft.db.ids import now
from weft.db.lists import ListOf
from weft.db.paging import PageRequest
from weft.db.scope import Owner
from weft.gateway.limit_endpoints import check_own
from weft.idempotency.routes import KeyedRoute
from weft.limits import service
from weft.limits.limit_repository import LimitAdminRepository
from weft.limits.models import Budget
from weft.limits.schemas import BudgetCreate, BudgetObject, BudgetUpdate
from weft.registry.subjects import find_subject
from weft.tenancy.auth import require_admin, require_operator
from weft.tenancy.authority import Maker
from weft.tenancy.principal import Operator, TenantAdmin
from weft.tenancy.schemas import Deleted
from weft.tenancy.service import get_owner

router = APIRouter(tags=["budgets"], route_class=KeyedRoute)
_TENANT = "/admin/v1/tenants/{tenant}/budgets"
_PLATFORM = "/admin/v1/budgets"
_OWN = "/v1/organization/budgets"
_operator_reads = [Depends(require_operator("limits:read"))]
OperatorWriter = Annotated[Operator, Depends(require_operator("limits:write"))]
AdminReader = Annotated[TenantAdmin, Depends(require_admin("limits:read"))]
AdminWriter = Annotated[TenantAdmin, Depends(require_admin("limits:write"))]


async def _list(
    session: AsyncSession, owner: Owner | None, page: PageRequest
) -> ListOf[BudgetObject]:
    found = await LimitAdminRepository(session, owner).list_rows(Budget, page)
    time_s = now()
    return ListOf[BudgetObject].of(found, lambda row: BudgetObject.of(row, time_s))


async def _get(session: AsyncSession, owner: Owner | None, budget_id: str) -> BudgetObject:
    return BudgetObject.of(await service.get_row(session, owner, Budget, budget_id), now())


async def _create(
    session: AsyncSession, owner: Owner | None, body: BudgetCreate, maker: Maker
) -> BudgetObject:
    subject = await find_subject(session, owner, body.subject.kind, body.subject.id)
    row = await service.create_budget(session, owner, subject, body.period, body.limit_pico, maker)
    return BudgetObject.of(row, now())


async def _changeable(
    session: AsyncSession, owner: Owner | None, budget_id: str, maker: Maker
) -> Budget:
    row = await service.get_row(session, owner, Budget, budget_id)
    if isinstance(maker, TenantAdmin):
        check_own(row.subject_kind)
    return row


async def _update(
    session: AsyncSession, owner: Owner | None, budget_id: str, body: BudgetUpdate, maker: Maker
) -> BudgetObject:
    row = await _changeable(session, owner, budget_id, maker)
    return BudgetObject.of(await service.update_budget(session, row, body.limit_pico, maker), now())


async def _delete(
    session: AsyncSession, owner: Owner | None, budget_id: str, maker: Maker
) -> Deleted:
    row = await _changeable(session, owner, budget_id, maker)
    await service.delete_row(session, owner, row, maker)
    return Deleted(id=row.id, object="budget.deleted")


@router.get(_PLATFORM, dependencies=_operator_reads)
async def list_base_budgets(session: ReadSession, page: PageDep) -> ListOf[BudgetObject]:
    """Of the bases, over all tenants."""
    return await _list(session, None, page)


@router.post(_PLATFORM, status_code=201)
async def create_base_budget(
    writer: OperatorWriter, body: BudgetCreate, session: WriteSession
) -> BudgetObject:
    return await _create(session, None, body, writer)


@router.get(_PLATFORM + "/{budget_id}", dependencies=_operator_reads)
async def get_base_budget(budget_id: str, session: ReadSession) -> BudgetObject:
    return await _get(session, None, budget_id)


@router.post(_PLATFORM + "/{budget_id}")
async def update_base_budget(
    writer: OperatorWriter, budget_id: str, body: BudgetUpdate, session: WriteSession
) -> BudgetObject:
    return await _update(session, None, budget_id, body, writer)


@router.delete(_PLATFORM + "/{budget_id}")
async def delete_base_budget(
    writer: OperatorWriter, budget_id: str, session: WriteSession
) -> Deleted:
    return await _delete(session, None, budget_id, writer)


@router.get(_TENANT, dependencies=_operator_reads)
async def list_tenant_budgets(
    tenant: str, session: ReadSession, page: PageDep
) -> ListOf[BudgetObject]:
    return await _list(session, await get_owner(session, tenant), page)


@router.post(_TENANT, status_code=201)
async def create_tenant_budget(
    writer: OperatorWriter, tenant: str, body: BudgetCreate, session: WriteSession
) -> BudgetObject:
    """Of the tenant, or of one of its projects, keys and adapters."""
    return await _create(session, await get_owner(session, tenant), body, writer)


@router.get(_TENANT + "/{budget_id}", dependencies=_operator_reads)
async def get_tenant_budget(tenant: str, budget_id: str, session: ReadSession) -> BudgetObject:
    return await _get(session, await get_owner(session, tenant), budget_id)


@router.post(_TENANT + "/{budget_id}")
async def update_tenant_budget(
    writer: OperatorWriter, tenant: str, budget_id: str, body: BudgetUpdate, session: WriteSession
) -> BudgetObject:
    return await _update(session, await get_owner(session, tenant), budget_id, body, writer)


@router.delete(_TENANT + "/{budget_id}")
async def delete_tenant_budget(
    writer: OperatorWriter, tenant: str, budget_id: str, session: WriteSession
) -> Deleted:
    return await _delete(session, await get_owner(session, tenant), budget_id, writer)


@router.get(_OWN)
async def list_own_budgets(
    admin: AdminReader, session: ReadSession, page: PageDep
) -> ListOf[BudgetObject]:
    """The tenant's, also those that only the operator changes."""
    return await _list(session, admin, page)


@router.post(_OWN, status_code=201)
async def create_own_budget(
    admin: AdminWriter, body: BudgetCreate, session: WriteSession
) -> BudgetObject:
    """Of a project, a key or an adapter."""
    check_own(body.subject.kind)
    return await _create(session, admin, body, admin)


@router.get(_OWN + "/{budget_id}")
async def get_own_budget(admin: AdminReader, budget_id: str, session: ReadSession) -> BudgetObject:
    return await _get(session, admin, budget_id)


@router.post(_OWN + "/{budget_id}")
async def update_own_budget(
    admin: AdminWriter, budget_id: str, body: BudgetUpdate, session: WriteSession
) -> BudgetObject:
    return await _update(session, admin, budget_id, body, admin)


@router.delete(_OWN + "/{budget_id}")
async def delete_own_budget(admin: AdminWriter, budget_id: str, session: WriteSession) -> Deleted:
    return await _delete(session, admin, budget_id, admin)
