"""Queries on tenants and projects."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, scoped, unscoped
from weft.tenancy.models import Project, Tenant

_OPERATOR = "tenants are the operator's own table"


class TenantRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, *rows: Tenant | Project) -> None:
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

    async def find_project(self, project_id: str, owner: Owner) -> Project | None:
        """In use or archived."""
        statement = select(Project).where(Project.id == project_id)
        return await self._session.scalar(scoped(statement, owner))

    async def find_project_by_name(self, name: str, owner: Owner) -> Project | None:
        """Only in use: archived ones give their names free."""
        statement = select(Project).where(Project.name == name, Project.archived_at.is_(None))
        return await self._session.scalar(scoped(statement, owner))

    async def list_projects(
        self, owner: Owner, page: PageRequest, *, include_archived: bool
    ) -> Page[Project]:
        statement = select(Project)
        if not include_archived:
            statement = statement.where(Project.archived_at.is_(None))
        rows = (await self._session.scalars(scoped(page.apply(statement, Project.id), owner))).all()
        return Page.of(rows, page)
