"""The lint finds what it is for, and nothing of it is in the source."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.db.scope_lint import faults_of

import weft
from weft.db.base import Base, TenantOwned
from weft.db.schema import import_models

SOURCE = Path(weft.__file__).parent

GOOD = """
from sqlalchemy import select, update
from weft.db.scope import scoped, unscoped
class Things:
    async def find(self, owner):
        return await self._session.scalar(scoped(select(Thing).where(Thing.id == "x"), owner))
    async def list(self, owner):
        statement = scoped(select(Thing), owner).limit(1)
        return (await self._session.scalars(statement)).all()
    async def join(self):
        statement = select(Thing).join(Other, Other.tenant_id == Thing.tenant_id)
        await self._session.execute(unscoped(statement, "all of them"))
    async def _rows(self, statement):
        return (await self._session.execute(statement)).all()
    async def list_all(self):
        return await self._rows(unscoped(select(Thing), "all of them"))
    async def add(self):
        await self._session.execute(insert_into(self._session, Thing).values(id="x"))
"""

BAD = {
    "find runs a statement": (
        "return await self._rows(select(Thing))\n"
        "async def _rows(self, statement):\n    await self._session.execute(statement)"
    ),
    "without a scope": "await session.execute(select(Thing))",
    "runs a statement": "statement = select(Thing)\n    await self._session.scalar(statement)",
    "by connection": "(await session.connection()).execute(scoped(select(Thing), owner))",
    "by get_bind": "session.get_bind().execute(x)",
    "by run_sync": "await session.run_sync(lambda s: s.execute(select(Thing)))",
    "by merge": "await session.merge(thing)",
    "by query": "session.query(Thing)",
    "imports create_async_engine": "from sqlalchemy.ext.asyncio import create_async_engine",
    "imports sqlite3": "import sqlite3",
    "imports psycopg": "from psycopg import connect",
    "compares a tenant_id": "unscoped(select(Thing).where(Thing.tenant_id == owner.id), 'x')",
    "marks a statement": "session.execute(scoped(x, o), execution_options={'weft_scope': 'x'})",
}


def test_scoped_queries_of_a_repository_are_fine() -> None:
    assert faults_of(GOOD, "things/repository.py", {"Thing"}) == []


@pytest.mark.parametrize("fault", BAD)
def test_a_way_around_is_found(fault: str) -> None:
    source = (
        "from sqlalchemy import select\nfrom weft.db.scope import scoped, unscoped\n"
        f"async def find(self, session, owner):\n    {BAD[fault]}\n"
    )
    found = faults_of(source, "things/repository.py", {"Thing"})
    assert any(fault in each for each in found), found


def test_statements_are_made_in_repositories() -> None:
    faults = faults_of(GOOD, "things/service.py", {"Thing"})
    assert len(faults) == 1
    assert "outside of a repository" in faults[0]


def test_the_source_has_no_query_that_goes_around_the_scope() -> None:
    import_models()
    tables = {mapper.class_ for mapper in Base.registry.mappers}
    owned = {table.__name__ for table in tables if issubclass(table, TenantOwned)}
    faults = []
    for file in sorted(SOURCE.rglob("*.py")):
        faults += faults_of(file.read_text(), file.relative_to(SOURCE).as_posix(), owned)
    assert faults == []
