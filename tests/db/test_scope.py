"""No statement reaches the database without saying whose rows it means."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import aliased

from weft.db.base import Base, PlatformOwned, TenantOwned
from weft.db.database import Database
from weft.db.schema import import_models
from weft.db.scope import TenantOwner, scoped, unscoped
from weft.tenancy.models import ApiKey, Project, Tenant


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    async with database.writing() as session:
        for tenant in ("a", "b"):
            session.add(Tenant(id=tenant, name=tenant, created_at=1, deleted_at=None))
        await session.flush()
        for tenant, number in (("a", 1), ("b", 2), ("b", 3)):
            session.add(Project(id=f"p{number}", tenant_id=tenant, name=f"n{number}", created_at=1))
    yield database
    await database.close()


async def test_a_scope_holds_for_rows_columns_joins_and_aliases(database: Database) -> None:
    owner = TenantOwner("b")
    other = aliased(Project)
    async with database.reading() as session:
        assert len((await session.scalars(scoped(select(Project), owner))).all()) == 2
        assert await session.scalar(scoped(select(func.count(Project.id)), owner)) == 2
        joined = select(Tenant.id, other.id).join(other, other.created_at == Tenant.created_at)
        rows = (await session.execute(scoped(joined, owner))).all()
        assert {project for _, project in rows} == {"p2", "p3"}


async def test_a_scope_holds_for_updates_and_deletes(database: Database) -> None:
    owner = TenantOwner("b")
    async with database.writing() as session:
        await session.execute(scoped(update(Project).values(name=Project.name + "x"), owner))
        await session.execute(scoped(delete(Project).where(Project.id.in_(["p1", "p2"])), owner))
    async with database.reading() as session:
        rows = await session.scalars(unscoped(select(Project).order_by(Project.id), "a test"))
        assert [(row.id, row.name) for row in rows] == [("p1", "n1"), ("p3", "n3x")]


async def test_a_statement_without_a_scope_is_refused(database: Database) -> None:
    async with database.reading() as session:
        with pytest.raises(AssertionError, match="without a tenant scope"):
            await session.execute(select(Project))
        with pytest.raises(AssertionError, match="without a tenant scope"):
            await session.get(ApiKey, "x")
    with pytest.raises(ValueError, match="reason"):
        unscoped(select(Project), "")


async def test_a_reading_session_changes_nothing(database: Database) -> None:
    async with database.reading() as session:
        session.add(Tenant(id="c", name="c", created_at=1, deleted_at=None))
        await session.flush()
    async with database.reading() as session:
        found = await session.scalar(unscoped(select(Tenant).where(Tenant.id == "c"), "a test"))
        assert found is None


async def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    async def fail_half_way() -> None:
        async with database.writing() as session:
            session.add(Tenant(id="c", name="c", created_at=1, deleted_at=None))
            await session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_half_way()
    async with database.reading() as session:
        assert await session.scalar(unscoped(select(func.count(Tenant.id)), "a test")) == 2


def test_every_table_says_whose_its_rows_are() -> None:
    import_models()
    for mapper in Base.registry.mappers:
        owners = {
            owner for owner in (TenantOwned, PlatformOwned) if issubclass(mapper.class_, owner)
        }
        assert len(owners) == 1, (
            f"{mapper.class_.__name__} has to be of a tenant or of the platform"
        )
