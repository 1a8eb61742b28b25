"""The audit trail: a tenant's own, and the operator's view of any chain."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from weft.audit.models import AuditEntry
from weft.audit.reading import AuditQuery, read_page
from weft.db.dependencies import ReadSession
from weft.db.paging import Page
from weft.tenancy import service
from weft.tenancy.audit_schemas import AuditLogList, entry_to_wire
from weft.tenancy.auth import require_admin, require_operator
from weft.tenancy.principal import TenantAdmin

router = APIRouter(tags=["audit"])

_MAX_CHOICES = 50
_MAX_TIME_S = 2**40
Id = Annotated[str | None, Query(max_length=64)]


async def get_query(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Id = None,
    before: Id = None,
    event_types: Annotated[
        list[str] | None, Query(alias="event_types[]", max_length=_MAX_CHOICES)
    ] = None,
    actor_ids: Annotated[
        list[str] | None, Query(alias="actor_ids[]", max_length=_MAX_CHOICES)
    ] = None,
    resource_ids: Annotated[
        list[str] | None, Query(alias="resource_ids[]", max_length=_MAX_CHOICES)
    ] = None,
    at_least: Annotated[int | None, Query(alias="effective_at[gte]", ge=0, le=_MAX_TIME_S)] = None,
    more_than: Annotated[int | None, Query(alias="effective_at[gt]", ge=0, le=_MAX_TIME_S)] = None,
    less_than: Annotated[int | None, Query(alias="effective_at[lt]", ge=0, le=_MAX_TIME_S)] = None,
    at_most: Annotated[int | None, Query(alias="effective_at[lte]", ge=0, le=_MAX_TIME_S)] = None,
) -> AuditQuery:
    """OpenAI's parameters, newest entries first."""
    since = [s for s in (at_least, None if more_than is None else more_than + 1) if s is not None]
    until = [s for s in (less_than, None if at_most is None else at_most + 1) if s is not None]
    return AuditQuery(
        limit,
        after,
        before,
        tuple(event_types or ()),
        tuple(actor_ids or ()),
        tuple(resource_ids or ()),
        max(since, default=None),
        min(until, default=None),
    )


AuditQueryDep = Annotated[AuditQuery, Depends(get_query)]


@router.get("/v1/organization/audit_logs")
async def list_audit_logs(
    admin: Annotated[TenantAdmin, Depends(require_admin("audit:read"))],
    query: AuditQueryDep,
    session: ReadSession,
) -> AuditLogList:
    """The tenant's own entries, newest first."""
    return _to_wire(await read_page(session, admin.tenant_id, query))


@router.get("/admin/v1/audit_logs", dependencies=[Depends(require_operator("platform:read"))])
async def list_any_audit_logs(
    query: AuditQueryDep,
    session: ReadSession,
    tenant: Annotated[str | None, Query(max_length=128)] = None,
) -> AuditLogList:
    """Those of a tenant (its id or name), or of the platform; newest first."""
    tenant_id = None if tenant is None else (await service.get_tenant(session, tenant)).id
    return _to_wire(await read_page(session, tenant_id, query))


def _to_wire(page: Page[AuditEntry]) -> AuditLogList:
    data = [entry_to_wire(entry) for entry in page.rows]
    return AuditLogList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )
