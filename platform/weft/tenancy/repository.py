"""Queries on tenants, projects and keys."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, scoped, unscoped
from weft.tenancy.models import ApiKey, Project, Tenant

_OPERATOR = "tenants are the operator's own table"


class TenantRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, *rows: Tenant | Project | ApiKey) -> None:
        self._session.add_all(rows)

    async def flush(self) -> None:
        await self._session.flush()

    async def find_tenant(self, id_or_name: str) -> Tenant | None:
        """A live tenant by id or by name."""
        statement = select(Tenant).where(
            Tenant.deleted_at.is_(None), (Tenant.id == id_or_name) | (Tenant.name == id_or_name)
        )
        return await self._session.scalar(unscoped(statement, _OPERATOR))

    async def list_tenants(self, page: PageRequest) -> Page[Tenant]:
        statement = page.apply(select(Tenant).where(Tenant.deleted_at.is_(None)), Tenant.id)
        rows = (await self._session.scalars(unscoped(statement, _OPERATOR))).all()
        return Page.of(rows, page)

    async def find_project(self, name: str, owner: Owner) -> Project | None:
        return await self._session.scalar(
            scoped(select(Project).where(Project.name == name), owner)
        )

    async def find_key_of_anyone(self, key_id: str) -> ApiKey | None:
        """The key with this id if its tenant lives: how a tenant becomes known at all."""
        statement = (
            select(ApiKey)
            .join(Tenant, Tenant.id == ApiKey.tenant_id)
            .where(ApiKey.id == key_id, Tenant.deleted_at.is_(None))
        )
        reason = "authentication finds out the tenant by the key id"
        return await self._session.scalar(unscoped(statement, reason))

    async def find_key(self, key_id: str, owner: Owner) -> ApiKey | None:
        return await self._session.scalar(scoped(select(ApiKey).where(ApiKey.id == key_id), owner))

    async def list_keys(self, owner: Owner) -> Sequence[ApiKey]:
        statement = select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)
        return (await self._session.scalars(scoped(statement, owner))).all()

    async def revoke_all_keys(self, owner: Owner, time_s: int) -> None:
        statement = update(ApiKey).where(ApiKey.revoked_at.is_(None)).values(revoked_at=time_s)
        await self._session.execute(scoped(statement, owner))
