"""Who a key stands for, and when it stands for nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import update

from weft.db.database import Database
from weft.db.ids import now
from weft.db.scope import unscoped
from weft.errors import AuthenticationError, ConflictError, InvalidRequestError, NotFoundError
from weft.tenancy import service
from weft.tenancy.keys import KeyText, create_key, try_parse_key
from weft.tenancy.models import ApiKey
from weft.tenancy.principal import Operator, Principal
from weft.tenancy.service import Authenticator

PEPPER = b"p" * 32
OPERATOR = str(create_key("admin"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def key(database: Database) -> str:
    async with database.writing() as session:
        await service.create_tenant(session, "acme")
        return (await service.create_tenant_key(session, "acme", PEPPER)).text


async def authenticate(
    database: Database, text: str, pepper: bytes = PEPPER
) -> Principal | Operator:
    async with database.reading() as session:
        return await Authenticator(pepper, OPERATOR).authenticate(session, text)


async def test_a_key_stands_for_its_tenant_and_project(database: Database, key: str) -> None:
    principal = await authenticate(database, key)
    assert isinstance(principal, Principal)
    assert principal.tenant_id.startswith("tnt_")
    assert principal.project_id.startswith("proj_")
    assert "inference" in principal.scopes
    assert isinstance(await authenticate(database, OPERATOR), Operator)


async def test_wrong_secrets_unknown_ids_and_peppers_are_one_refusal(
    database: Database, key: str
) -> None:
    parsed = try_parse_key(key)
    assert parsed is not None
    forged = KeyText("live", parsed.key_id, create_key("live").secret)
    messages = set()
    for text in (str(forged), str(create_key("live")), str(create_key("admin")), "junk", ""):
        with pytest.raises(AuthenticationError) as caught:
            await authenticate(database, text)
        messages.add(caught.value.message)
    with pytest.raises(AuthenticationError) as caught:
        await authenticate(database, key, pepper=b"q" * 32)
    assert {caught.value.message} == messages


async def test_an_expired_key_is_refused(database: Database, key: str) -> None:
    async with database.writing() as session:
        expired = update(ApiKey).values(expires_at=now())
        await session.execute(unscoped(expired, "a test"))
    with pytest.raises(AuthenticationError):
        await authenticate(database, key)


async def test_revoking_is_idempotent_and_final(database: Database, key: str) -> None:
    key_id = key.split("_")[2]
    for _ in range(2):
        async with database.writing() as session:
            row = await service.revoke_tenant_key(session, "acme", key_id)
            assert row.revoked_at is not None
    with pytest.raises(AuthenticationError):
        await authenticate(database, key)
    async with database.writing() as session:
        with pytest.raises(NotFoundError):
            await service.revoke_tenant_key(session, "acme", "nope")


async def test_another_tenants_key_cannot_be_revoked(database: Database, key: str) -> None:
    async with database.writing() as session:
        await service.create_tenant(session, "other")
        with pytest.raises(NotFoundError):
            await service.revoke_tenant_key(session, "other", key.split("_")[2])
    assert isinstance(await authenticate(database, key), Principal)


async def test_only_the_hash_of_a_secret_is_stored(database: Database, key: str) -> None:
    async with database.reading() as session:
        (row,) = await service.list_tenant_keys(session, "acme")
    stored = str([getattr(row, column.key) for column in ApiKey.__table__.columns])
    assert key.split("_")[3][:43] not in stored
    assert row.last4 == key[-4:]


async def test_tenant_names_are_unique_among_the_living(database: Database, key: str) -> None:
    async with database.writing() as session:
        with pytest.raises(ConflictError):
            await service.create_tenant(session, "acme")
        with pytest.raises(InvalidRequestError):
            await service.create_tenant(session, "tnt_x")
        await service.delete_tenant(session, "acme")
        await service.create_tenant(session, "acme")
