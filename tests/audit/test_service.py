"""The audit trail: an entry for each change, and no way to alter one unseen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import SYSTEM, Actor, Target, record
from weft.audit.chain import FIRST_HASH, Head, hash_entry
from weft.audit.models import AuditEntry, AuditHead
from weft.audit.service import Verified, verify
from weft.db.database import Database
from weft.db.scope import TenantOwner, scoped, unscoped
from weft.tenancy.keys import create_key
from weft.tenancy.models import Tenant

OPERATOR = Actor("operator", "op", ip="192.0.2.7", user_agent="curl/8")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    async with database.writing() as session:
        for tenant in ("a", "b"):
            session.add(Tenant(id=tenant, name=tenant, created_at=1, deleted_at=None))
    yield database
    await database.close()


async def write(database: Database, *targets: Target) -> None:
    """An entry for each target, in a transaction of its own."""
    for target in targets:
        await database.write(partial(add, target))


async def add(target: Target, session: AsyncSession) -> None:
    await record(session, OPERATOR, "project.updated", target, {"name": "x"})


async def check(database: Database, known: dict[str, Head] | None = None) -> Verified:
    async with database.reading() as session:
        return await verify(session, known)


async def test_each_tenant_and_the_platform_have_a_chain(database: Database) -> None:
    await write(database, Target("p1", "a"), Target("p2", "b"), Target("x"), Target("p3", "a"))
    async with database.reading() as session:
        statement = scoped(select(AuditEntry).order_by(AuditEntry.number), TenantOwner("a"))
        first, second = (await session.scalars(statement)).all()
    assert (first.number, second.number) == (1, 2)
    assert first.previous_hash == FIRST_HASH
    assert second.previous_hash == first.hash == hash_entry(first)
    assert (first.actor_kind, first.actor_id, first.ip) == ("operator", "op", "192.0.2.7")
    done = await check(database)
    assert done.faults == ()
    assert done.num_entries == 4
    assert {head.chain: head.number for head in done.heads} == {"a": 2, "b": 1, "platform": 1}


async def test_an_entry_lives_and_dies_with_its_change(database: Database) -> None:
    await write(database, Target("p1", "a"))

    async def fail_half_way() -> None:
        async with database.writing() as session:
            await record(session, SYSTEM, "project.updated", Target("p1", "a"), {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_half_way()
    await write(database, Target("p1", "a"))
    done = await check(database)
    assert (done.num_entries, done.faults) == (2, ())


async def test_changes_at_once_stand_in_one_row(database: Database) -> None:
    await asyncio.gather(*(write(database, Target("p", "a"), Target("q")) for _ in range(8)))
    done = await check(database)
    assert (done.num_entries, done.faults) == (16, ())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("changes", '{"number":7}'),
        ("actor_id", "someone"),
        ("recorded_at_ms", 5),
        ("type", "project.archived"),
        ("target_id", "p9"),
        ("tenant_id", None),
        ("ip", None),
        ("hash", "0" * 64),
    ],
)
async def test_an_altered_entry_is_found(database: Database, column: str, value: object) -> None:
    await write(database, Target("p1", "a"), Target("p2", "a"), Target("p3", "a"))
    async with database.writing() as session:
        altered = update(AuditEntry).where(AuditEntry.number == 2).values({column: value})
        await session.execute(unscoped(altered, "an attack"))
    faults = (await check(database)).faults
    assert any("a: entry 2" in fault and "was altered" in fault for fault in faults)


async def test_an_entry_that_was_altered_with_its_hash_no_longer_leads_on(
    database: Database,
) -> None:
    await write(database, Target("p1", "a"), Target("p2", "a"), Target("p3", "a"))
    async with database.writing() as session:
        statement = select(AuditEntry).where(AuditEntry.number == 2)
        entry = (await session.scalars(unscoped(statement, "an attack"))).one()
        entry.actor_id = "someone"
        entry.hash = hash_entry(entry)
    (fault,) = (await check(database)).faults
    assert "entry 3" in fault
    assert "does not follow" in fault


@pytest.mark.parametrize(("numbers", "fault"), [([1], "entry 1 is"), ([2, 3], "entries 2 to 3")])
async def test_a_removed_entry_is_found(database: Database, numbers: list[int], fault: str) -> None:
    await write(database, *(Target("p", "a") for _ in range(3)))
    async with database.writing() as session:
        removed = delete(AuditEntry).where(AuditEntry.number.in_(numbers))
        await session.execute(unscoped(removed, "an attack"))
    (found,) = (await check(database)).faults
    assert fault in found
    assert "missing" in found


async def test_a_chain_that_lost_its_head_or_all_its_entries_is_found(database: Database) -> None:
    await write(database, Target("p", "a"), Target("p", "b"))
    async with database.writing() as session:
        headless = delete(AuditHead).where(AuditHead.chain == "a")
        await session.execute(unscoped(headless, "an attack"))
        emptied = delete(AuditEntry).where(AuditEntry.chain == "b")
        await session.execute(unscoped(emptied, "an attack"))
    assert (await check(database)).faults == (
        "a: its head is missing",
        "b: entry 1 is missing at the end",
    )


async def test_a_chain_that_was_computed_anew_is_found_by_a_head_kept_elsewhere(
    database: Database,
) -> None:
    await write(database, *(Target("p", "a") for _ in range(3)))
    known = {head.chain: head for head in (await check(database)).heads}
    await write(database, Target("p", "a"))
    assert (await check(database, known)).faults == ()
    async with database.writing() as session:
        statement = select(AuditEntry).order_by(AuditEntry.number)
        previous = FIRST_HASH
        for entry in (await session.scalars(unscoped(statement, "an attack"))).all():
            entry.ip = "198.51.100.1"
            entry.previous_hash = previous
            entry.hash = previous = hash_entry(entry)
        await session.execute(unscoped(update(AuditHead).values(hash=previous), "an attack"))
    assert (await check(database)).faults == ()
    (fault,) = (await check(database, known)).faults
    assert "not the one that was there before" in fault


async def test_a_chain_that_was_removed_is_found_by_a_head_kept_elsewhere(
    database: Database,
) -> None:
    known = {"a": Head("a", 2, "f" * 64)}
    assert (await check(database, known)).faults == (
        "a: entries 1 to 2 are missing at the end, which was there before",
        "a: its head is missing",
    )


async def test_secrets_are_not_written_down(database: Database) -> None:
    key = str(create_key("live"))
    changes = {
        "name": f"for {key}",
        "password": "hunter2hunter2",
        "nested": [{"client_secret": "abc"}, "https://user:pass@example.com/x"],
        "max_tokens": 5,
        "scopes": {"b", "a"},
    }
    actor = Actor("api_key", "k", "a", "192.0.2.1", f"agent\r\n{key}")
    async with database.writing() as session:
        entry = await record(session, actor, "api_key.created", Target("k", "a"), changes)
    written = entry.changes + str(entry.user_agent)
    for secret in (key, key.split("_")[3], "hunter2", "abc", "user:pass"):
        assert secret not in written
    assert entry.user_agent == "agent??[redacted]"
    said = json.loads(entry.changes)
    assert (said["max_tokens"], said["scopes"]) == (5, ["a", "b"])


async def test_a_type_is_a_noun_and_what_was_done(database: Database) -> None:
    async with database.writing() as session:
        for wrong in ("created", "Project.created", "project.", "a.b\n", "x." + "y" * 70):
            with pytest.raises(ValueError, match="no type of audit entries"):
                await record(session, SYSTEM, wrong, Target("p"), {})


async def test_an_entry_cannot_be_added_twice_in_one_place(database: Database) -> None:
    await write(database, Target("p", "a"))
    async with database.reading() as session:
        statement = select(*AuditEntry.__table__.columns)
        row = (await session.execute(unscoped(statement, "a test"))).one()
    again = unscoped(insert(AuditEntry).values({**row._mapping, "id": "other"}), "an attack")
    async with database.writing() as session:
        with pytest.raises(IntegrityError):
            await session.execute(again)
