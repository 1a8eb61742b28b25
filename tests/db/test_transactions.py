"""Short transactions of prepared statements: whose rows they reach, what is committed and what is
not, alone and in batches, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from weft.db.database import Database
from weft.db.errors import TextRefusedError
from weft.db.group_commit import DatabaseClosedError
from weft.db.prepared import Prepared
from weft.db.scope import (
    TENANT_PARAMETER,
    scoped_by_parameter,
    scoped_or_shared_by_parameter,
    unscoped,
)
from weft.db.transactions import Transaction, fetch
from weft.limits.models import Limit
from weft.tenancy.models import Project, Tenant

REASON = "a test"
ADD = Prepared(
    insert(Tenant).values(
        id=bindparam("id"), name=bindparam("id"), created_at=1, include_obfuscation=False
    )
)
FIND = Prepared(unscoped(select(Tenant.created_at).where(Tenant.id == bindparam("name")), REASON))
COUNT_UP = Prepared(
    unscoped(
        update(Tenant)
        .where(Tenant.id == bindparam("name"))
        .values(created_at=Tenant.created_at + bindparam("more"))
        .returning(Tenant.created_at),
        REASON,
    )
)
PROJECTS = Prepared(scoped_by_parameter(select(Project.id).order_by(Project.id)))
RENAME = Prepared(
    scoped_by_parameter(update(Project).values(name=bindparam("new")).returning(Project.id))
)
LIMITS = Prepared(scoped_or_shared_by_parameter(select(Limit.id).order_by(Limit.id)))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


async def names(database: Database) -> list[str]:
    async with database.reading() as session:
        found = await session.scalars(unscoped(select(Tenant.name).order_by(Tenant.name), REASON))
        return list(found)


async def add(tx: Transaction, *ids: str) -> None:
    await tx.run(ADD, [{"id": id_} for id_ in ids])


def test_a_statement_without_a_scope_cannot_be_prepared() -> None:
    with pytest.raises(AssertionError, match="without a tenant scope"):
        Prepared(select(Tenant.id))


async def test_a_statement_of_a_scope_reaches_the_rows_of_the_tenant_it_is_run_for(
    database: Database,
) -> None:
    async with database.writing() as session:
        session.add_all(Tenant(id=name, name=name, created_at=1) for name in "ab")
        await session.flush()
        for number, tenant in ((1, "a"), (2, "b")):
            session.add(Project(id=f"p{number}", tenant_id=tenant, name="n", created_at=1))
        for number, owner in ((1, "a"), (2, "b"), (3, None)):
            session.add(
                Limit(
                    id=f"l{number}", tenant_id=owner, subject_kind="base", subject_id=str(number),
                    model="", created_at=1, updated_at=1,
                )
            )  # fmt: skip
    each = [{TENANT_PARAMETER: tenant} for tenant in ("a", "b", "c")]
    assert await database.transact(lambda tx: fetch(tx, PROJECTS, each)) == [
        [("p1",)],
        [("p2",)],
        [],
    ]
    limits = await database.transact(lambda tx: fetch(tx, LIMITS, each))
    assert limits == [[("l1",), ("l3",)], [("l2",), ("l3",)], [("l3",)]]
    renamed = [{TENANT_PARAMETER: "b", "new": "x"}]
    assert await database.transact(lambda tx: fetch(tx, RENAME, renamed)) == [[("p2",)]]
    with pytest.raises(KeyError, match=TENANT_PARAMETER):
        await database.transact(lambda tx: fetch(tx, RENAME, [{"new": "x"}]))


async def test_a_transaction_is_committed_whole_or_not_at_all(database: Database) -> None:
    async def good(tx: Transaction) -> object:
        await add(tx, "a", "b")
        answers = await tx.ask(COUNT_UP, [{"name": "a", "more": 2}, {"name": "no", "more": 1}])
        await add(tx, "c")
        return await answers.rows()

    async def raises(tx: Transaction) -> None:
        await add(tx, "d")
        await fetch(tx, FIND, [{"name": "d"}])
        raise RuntimeError("d")

    async def collides(tx: Transaction) -> None:
        await add(tx, "e")
        await add(tx, "a")

    assert await database.transact(good) == [[(3,)], []]
    with pytest.raises(RuntimeError, match="d"):
        await database.transact(raises)
    with pytest.raises(IntegrityError):
        await database.transact(collides)
    assert await names(database) == ["a", "b", "c"]
    await database.transact(lambda tx: add(tx, "f"))  # what failed has left nothing open
    assert await names(database) == ["a", "b", "c", "f"]


async def test_additions_beside_each_other_and_beside_sessions_are_all_counted(
    database: Database,
) -> None:
    await database.transact(lambda tx: add(tx, "a"))
    statement = unscoped(update(Tenant).values(created_at=Tenant.created_at + 1), REASON)

    async def in_session() -> None:
        async with database.writing() as session:
            await session.execute(statement)

    await asyncio.gather(
        *(
            database.transact(lambda tx: fetch(tx, COUNT_UP, [{"name": "a", "more": 1}]))
            for _ in range(20)
        ),
        *(in_session() for _ in range(5)),
        *(database.write(lambda session: session.execute(statement)) for _ in range(5)),
    )
    found = await database.transact(lambda tx: fetch(tx, FIND, [{"name": "a"}]))
    assert found == [[(31,)]]


async def test_text_with_nul_is_refused_or_finds_nothing(database: Database) -> None:
    values = [{"name": "a\x00b"}]
    if database.is_sqlite:
        assert await database.transact(lambda tx: fetch(tx, FIND, values)) == [[]]
        return
    with pytest.raises(TextRefusedError):
        await database.transact(lambda tx: fetch(tx, FIND, values))


class Adding:
    """Adds tenants in batches; one whose name begins with "no" is refused."""

    def __init__(self, database: Database) -> None:
        self.sizes: list[int] = []
        self.batches = database.batches(self.work)

    async def work(self, tx: Transaction, items: Sequence[str]) -> list[str | Exception]:
        self.sizes.append(len(items))
        refused = {item: ValueError(item) for item in items if item.startswith("no")}
        await add(tx, *(item for item in items if item not in refused))
        return [refused.get(item, item.upper()) for item in items]


async def test_what_waits_is_worked_on_together(database: Database) -> None:
    adding = Adding(database)
    done = await asyncio.gather(*(adding.batches.run(f"t{n:02}") for n in range(20)))
    assert done == [f"T{n:02}" for n in range(20)]
    assert len(await names(database)) == 20
    assert len(adding.sizes) < 5


async def test_an_item_that_is_refused_or_fails_keeps_none_of_the_others_back(
    database: Database,
) -> None:
    adding = Adding(database)
    await adding.batches.run("there")
    results = await asyncio.gather(
        *(adding.batches.run(item) for item in ("a", "no", "there", "b")), return_exceptions=True
    )
    assert [type(result) for result in results] == [str, ValueError, IntegrityError, str]
    assert await names(database) == ["a", "b", "there"]


async def test_who_gives_up_before_its_turn_leaves_nothing(database: Database) -> None:
    adding = Adding(database)
    given_up = asyncio.create_task(adding.batches.run("a"))
    await asyncio.sleep(0)
    given_up.cancel()
    await adding.batches.run("b")
    assert await names(database) == ["b"]


async def test_what_waits_is_done_before_the_database_closes(database_url: str) -> None:
    database = Database(database_url)
    adding = Adding(database)
    waiting = asyncio.create_task(adding.batches.run("a"))
    await asyncio.sleep(0)
    await database.close()
    assert await waiting == "A"
    with pytest.raises(DatabaseClosedError):
        await adding.batches.run("b")
    database = Database(database_url)
    assert await names(database) == ["a"]
    await database.close()
