"""Queries on adapters, versions and aliases; every one is scoped to a tenant."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.paging import Page, PageRequest
from weft.db.scope import Owner, scoped
from weft.limits.limit_repository import LimitAdminRepository
from weft.limits.models import Limit
from weft.limits.subjects import Subject
from weft.registry.models import Adapter, AdapterAlias, AdapterVersion, VersionState
from weft.registry.names import ModelName

# what a list shows unless another state is asked for
LISTED = (
    VersionState.UPLOADING,
    VersionState.VALIDATING,
    VersionState.READY,
    VersionState.REJECTED,
)
# what takes a tenant's room: its files are in the store, or will be
KEPT = (
    VersionState.UPLOADING,
    VersionState.VALIDATING,
    VersionState.READY,
    VersionState.ARCHIVED,
)


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

    async def find_adapter_by_id(self, adapter_id: str) -> Adapter | None:
        statement = select(Adapter).where(Adapter.id == adapter_id, Adapter.deleted_at.is_(None))
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
                AdapterVersion.state == VersionState.READY,
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
        """In whatever state it is."""
        statement = select(AdapterVersion).where(
            AdapterVersion.adapter_id == adapter.id, AdapterVersion.number == number
        )
        return await self._session.scalar(scoped(statement, self._owner))

    async def find_version_by_id(self, version_id: str) -> AdapterVersion | None:
        statement = select(AdapterVersion).where(AdapterVersion.id == version_id)
        return await self._session.scalar(scoped(statement, self._owner))

    async def find_version_by_digest(self, adapter: Adapter, digest: str) -> AdapterVersion | None:
        """The one that is ready, or about to be."""
        statement = select(AdapterVersion).where(
            AdapterVersion.adapter_id == adapter.id,
            AdapterVersion.digest == digest,
            AdapterVersion.state.in_((VersionState.READY, VersionState.VALIDATING)),
        )
        return await self._session.scalar(scoped(statement, self._owner))

    async def list_versions(
        self, adapter: Adapter, page: PageRequest, states: Sequence[VersionState] = LISTED
    ) -> Page[AdapterVersion]:
        """`page.after` is a version's id."""
        statement = page.apply(
            select(AdapterVersion).where(
                AdapterVersion.adapter_id == adapter.id, AdapterVersion.state.in_(states)
            ),
            AdapterVersion.id,
        )
        rows = (await self._session.scalars(scoped(statement, self._owner))).all()
        return Page.of(rows, page)

    async def list_kept_versions(self, adapter: Adapter) -> Sequence[AdapterVersion]:
        statement = select(AdapterVersion).where(
            AdapterVersion.adapter_id == adapter.id, AdapterVersion.state.in_(KEPT)
        )
        return (await self._session.scalars(scoped(statement, self._owner))).all()

    async def count_kept(self) -> tuple[int, int]:
        """(versions, bytes) of all adapters of the tenant."""
        statement = select(
            func.count(AdapterVersion.id), func.coalesce(func.sum(AdapterVersion.num_bytes), 0)
        ).where(AdapterVersion.state.in_(KEPT))
        row = (await self._session.execute(scoped(statement, self._owner))).one()
        return int(row[0]), int(row[1])

    async def count_state(self, *states: VersionState) -> int:
        statement = select(func.count(AdapterVersion.id)).where(AdapterVersion.state.in_(states))
        return await self._session.scalar(scoped(statement, self._owner)) or 0

    async def count_adapters(self) -> int:
        statement = select(func.count(Adapter.id)).where(Adapter.deleted_at.is_(None))
        return await self._session.scalar(scoped(statement, self._owner)) or 0

    async def find_tenant_limit(self) -> Limit | None:
        """What the operator has set for the tenant, in place of what holds for all."""
        subject = Subject("tenant", self._owner.tenant_id)
        return await LimitAdminRepository(self._session, self._owner).find_limit(subject, "")

    async def count_pinned(self) -> int:
        statement = select(func.count(AdapterVersion.id)).where(
            AdapterVersion.is_pinned.is_(True), AdapterVersion.state == VersionState.READY
        )
        return await self._session.scalar(scoped(statement, self._owner)) or 0

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

    async def delete_alias(self, alias: AdapterAlias) -> None:
        statement = delete(AdapterAlias).where(
            AdapterAlias.adapter_id == alias.adapter_id, AdapterAlias.name == alias.name
        )
        await self._session.execute(scoped(statement, self._owner))

    async def delete_aliases(self, adapter: Adapter) -> None:
        statement = delete(AdapterAlias).where(AdapterAlias.adapter_id == adapter.id)
        await self._session.execute(scoped(statement, self._owner))
