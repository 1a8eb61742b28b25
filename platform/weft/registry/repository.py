"""Queries on adapters, versions and aliases; every one is scoped to a tenant."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, scoped
from weft.registry.models import Adapter, AdapterAlias, AdapterVersion
from weft.registry.names import ModelName

READY = "ready"


class RegistryRepository:
    """One tenant's rows in one session."""

    def __init__(self, session: AsyncSession, owner: Owner) -> None:
        self._session = session
        self._owner = owner

    def add(self, row: Adapter | AdapterVersion | AdapterAlias) -> None:
        self._session.add(row)

    async def flush(self) -> None:
        await self._session.flush()

    async def find_adapter(self, name: str) -> Adapter | None:
        statement = select(Adapter).where(Adapter.name == name, Adapter.deleted_at.is_(None))
        return await self._session.scalar(scoped(statement, self._owner))

    async def list_adapters(self, page: PageRequest) -> Page[Adapter]:
        """`page.after` is an adapter's id."""
        statement = page.apply(select(Adapter).where(Adapter.deleted_at.is_(None)), Adapter.id)
        rows = (await self._session.scalars(scoped(statement, self._owner))).all()
        return Page.of(rows, page)

    async def list_servable(self, base_digest: str) -> Sequence[tuple[Adapter, AdapterVersion]]:
        """Live adapters with what their default alias points at, for this base."""
        statement = (
            select(Adapter, AdapterVersion)
            .join(AdapterAlias, AdapterAlias.adapter_id == Adapter.id)
            .join(AdapterVersion, AdapterVersion.id == AdapterAlias.version_id)
            .where(
                Adapter.deleted_at.is_(None),
                AdapterAlias.name == "default",
                AdapterVersion.base_digest == base_digest,
            )
            .order_by(Adapter.name)
        )
        rows = await self._session.execute(scoped(statement, self._owner))
        return [(adapter, version) for adapter, version in rows]

    async def resolve(self, name: ModelName) -> tuple[Adapter, AdapterVersion] | None:
        """The ready version that `name` means now."""
        statement = (
            select(Adapter, AdapterVersion)
            .join(AdapterVersion, AdapterVersion.adapter_id == Adapter.id)
            .where(
                Adapter.name == name.adapter,
                Adapter.deleted_at.is_(None),
                AdapterVersion.state == READY,
            )
        )
        if name.number is not None:
            statement = statement.where(AdapterVersion.number == name.number)
        else:
            statement = statement.join(
                AdapterAlias, AdapterAlias.version_id == AdapterVersion.id
            ).where(AdapterAlias.name == name.alias)
        row = (await self._session.execute(scoped(statement, self._owner))).first()
        return None if row is None else (row[0], row[1])

    async def find_version(self, adapter: Adapter, number: int) -> AdapterVersion | None:
        statement = select(AdapterVersion).where(
            AdapterVersion.adapter_id == adapter.id,
            AdapterVersion.number == number,
            AdapterVersion.state == READY,
        )
        return await self._session.scalar(scoped(statement, self._owner))

    async def find_version_by_digest(self, adapter: Adapter, digest: str) -> AdapterVersion | None:
        statement = select(AdapterVersion).where(
            AdapterVersion.adapter_id == adapter.id,
            AdapterVersion.digest == digest,
            AdapterVersion.state == READY,
        )
        return await self._session.scalar(scoped(statement, self._owner))

    async def list_versions(
        self,
        adapter: Adapter,
        page: PageRequest = PageRequest(),  # noqa: B008 (frozen)
    ) -> Page[AdapterVersion]:
        """`page.after` is a version's id."""
        statement = page.apply(
            select(AdapterVersion).where(
                AdapterVersion.adapter_id == adapter.id, AdapterVersion.state == READY
            ),
            AdapterVersion.id,
        )
        rows = (await self._session.scalars(scoped(statement, self._owner))).all()
        return Page.of(rows, page)

    async def next_number(self, adapter: Adapter) -> int:
        """Deleted versions count too: a number never means another upload later."""
        statement = select(func.max(AdapterVersion.number)).where(
            AdapterVersion.adapter_id == adapter.id
        )
        return ((await self._session.scalar(scoped(statement, self._owner))) or 0) + 1

    async def list_aliases(self, adapter: Adapter) -> Sequence[tuple[AdapterAlias, int]]:
        """Aliases, each with the number of its version."""
        statement = (
            select(AdapterAlias, AdapterVersion.number)
            .join(AdapterVersion, AdapterVersion.id == AdapterAlias.version_id)
            .where(AdapterAlias.adapter_id == adapter.id)
            .order_by(AdapterAlias.name)
        )
        rows = await self._session.execute(scoped(statement, self._owner))
        return [(alias, number) for alias, number in rows]

    async def find_alias(self, adapter: Adapter, name: str) -> AdapterAlias | None:
        statement = select(AdapterAlias).where(
            AdapterAlias.adapter_id == adapter.id, AdapterAlias.name == name
        )
        return await self._session.scalar(scoped(statement, self._owner))

    async def delete_aliases(self, adapter: Adapter) -> None:
        statement = delete(AdapterAlias).where(AdapterAlias.adapter_id == adapter.id)
        await self._session.execute(scoped(statement, self._owner))
