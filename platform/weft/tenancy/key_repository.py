"""Queries on keys of all kinds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

from sqlalchemy import Select, and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, scoped, unscoped
from weft.errors import InvalidRequestError
from weft.tenancy.models import AdminKey, ApiKey, OperatorKey, Project, Tenant

AnyKey: TypeAlias = ApiKey | AdminKey | OperatorKey

_AUTHENTICATION = "authentication finds out the tenant by the key id"
_OPERATORS = "operators' keys are the platform's own table"


class KeyRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, row: AnyKey) -> None:
        self._session.add(row)
        await self._session.flush()

    async def find_project_key_of_anyone(self, key_id: str) -> tuple[ApiKey, Tenant] | None:
        """The key with this id if its tenant lives and its project is in use."""
        statement = (
            select(ApiKey, Tenant)
            .join(Tenant, Tenant.id == ApiKey.tenant_id)
            .join(Project, Project.id == ApiKey.project_id)
            .where(ApiKey.id == key_id, Tenant.deleted_at.is_(None), Project.archived_at.is_(None))
        )
        row = (await self._session.execute(unscoped(statement, _AUTHENTICATION))).one_or_none()
        return None if row is None else (row[0], row[1])

    async def find_admin_key_of_anyone(self, key_id: str) -> tuple[AdminKey, Tenant] | None:
        """The key with this id if its tenant lives."""
        statement = (
            select(AdminKey, Tenant)
            .join(Tenant, Tenant.id == AdminKey.tenant_id)
            .where(AdminKey.id == key_id, Tenant.deleted_at.is_(None))
        )
        row = (await self._session.execute(unscoped(statement, _AUTHENTICATION))).one_or_none()
        return None if row is None else (row[0], row[1])

    async def find_operator_key(self, key_id: str) -> OperatorKey | None:
        statement = select(OperatorKey).where(OperatorKey.id == key_id)
        return await self._session.scalar(unscoped(statement, _OPERATORS))

    async def find_admin_key(self, key_id: str, owner: Owner) -> AdminKey | None:
        return await self._session.scalar(
            scoped(select(AdminKey).where(AdminKey.id == key_id), owner)
        )

    async def find_project_key(
        self, key_id: str, owner: Owner, project_id: str | None = None
    ) -> ApiKey | None:
        """The tenant's key; None as well where it is of another of its projects."""
        statement = select(ApiKey).where(ApiKey.id == key_id)
        if project_id is not None:
            statement = statement.where(ApiKey.project_id == project_id)
        return await self._session.scalar(scoped(statement, owner))

    async def list_project_keys(
        self, owner: Owner, page: PageRequest, project_id: str | None = None
    ) -> Page[ApiKey]:
        statement = select(ApiKey)
        if project_id is not None:
            statement = statement.where(ApiKey.project_id == project_id)
        after = None
        if page.after is not None:
            after = await self.find_project_key(page.after, owner, project_id)
        statement = scoped(_page_of(statement, ApiKey, page, after), owner)
        return Page.of((await self._session.scalars(statement)).all(), page)

    async def list_admin_keys(self, owner: Owner, page: PageRequest) -> Page[AdminKey]:
        after = None if page.after is None else await self.find_admin_key(page.after, owner)
        statement = scoped(_page_of(select(AdminKey), AdminKey, page, after), owner)
        return Page.of((await self._session.scalars(statement)).all(), page)

    async def list_operator_keys(self, page: PageRequest) -> Page[OperatorKey]:
        after = None if page.after is None else await self.find_operator_key(page.after)
        statement = _page_of(select(OperatorKey), OperatorKey, page, after)
        rows = (await self._session.scalars(unscoped(statement, _OPERATORS))).all()
        return Page.of(rows, page)

    async def revoke_all(self, owner: Owner, time_s: int) -> None:
        """The tenant's keys of both kinds."""
        for table in (ApiKey, AdminKey):
            statement = update(table).where(table.revoked_at.is_(None)).values(revoked_at=time_s)
            await self._session.execute(scoped(statement, owner))

    async def note_use(self, table: type[AnyKey], key_ids: Collection[str], time_s: int) -> None:
        """These keys were used at `time_s`; a later use that is on record stays."""
        statement = (
            update(table)
            .where(
                table.id.in_(key_ids),
                or_(table.last_used_at.is_(None), table.last_used_at < time_s),
            )
            .values(last_used_at=time_s)
        )
        reason = "the uses of all tenants' keys are noted together"
        await self._session.execute(
            unscoped(statement, reason).execution_options(synchronize_session=False)
        )


def _page_of(
    statement: Select[Any], table: type[AnyKey], page: PageRequest, after: AnyKey | None
) -> Select[Any]:
    """By the time they were made: ids of keys are random."""
    is_descending = page.order == "desc"
    if page.after is not None:
        if after is None:
            raise InvalidRequestError("'after' is no key of this list.", param="after")
        made, key_id = table.created_at, table.id
        statement = statement.where(
            or_(
                made < after.created_at if is_descending else made > after.created_at,
                and_(
                    made == after.created_at,
                    key_id < after.id if is_descending else key_id > after.id,
                ),
            )
        )
    columns = (table.created_at, table.id)
    ordered = [column.desc() if is_descending else column for column in columns]
    return statement.order_by(*ordered).limit(page.limit + 1)
