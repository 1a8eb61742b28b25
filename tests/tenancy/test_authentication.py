"""Who a key stands for, and when it stands for nobody."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from weft.db.ids import now
from weft.db.scope import TenantOwner, unscoped
from weft.errors import (
    AuthenticationError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    TenantSuspendedError,
)
from weft.tenancy import key_service, service
from weft.tenancy.authenticator import Authenticator
from weft.tenancy.key_service import KeyChange
from weft.tenancy.keys import KeyText, create_key, try_parse_key
from weft.tenancy.models import AdminKey, ApiKey
from weft.tenancy.principal import (
    ALL_PERMISSIONS,
    TENANT_PERMISSIONS,
    Operator,
    Principal,
    TenantAdmin,
)

PEPPER = b"p" * 32


async def assert_refused(office: Any, *texts: str) -> None:
    """With one message for all of them."""
    messages = set()
    for text in texts:
        with pytest.raises(AuthenticationError) as caught:
            await office.new_authenticator().authenticate(text)
        messages.add((caught.value.message, caught.value.code, tuple(caught.value.headers)))
    assert len(messages) == 1


async def test_each_kind_of_key_stands_for_its_own(office: Any, acme: TenantOwner) -> None:
    async with office.database.writing() as session:
        admin = await key_service.create_admin_key(session, acme.tenant_id, PEPPER, None)
        operator = await key_service.create_operator_key(session, PEPPER, None)
    key = await office.key(acme)
    principal = await office.authenticator.authenticate(key.text)
    assert principal == Principal(
        acme.tenant_id,
        (await office.project(acme)).id,
        key.row.id,
        frozenset({"inference", "adapters:read", "adapters:write", "usage:read"}),
    )
    assert await office.authenticator.authenticate(admin.text) == TenantAdmin(
        acme.tenant_id, TENANT_PERMISSIONS, "admin_key", admin.row.id
    )
    assert await office.authenticator.authenticate(operator.text) == Operator(operator.row.id)
    first = await office.authenticator.authenticate(office.operator_key)
    assert isinstance(first, Operator)
    assert first.permissions == ALL_PERMISSIONS


async def test_the_operator_key_of_an_older_data_folder_is_still_the_operators(office: Any) -> None:
    older = str(create_key("admin"))
    authenticator = Authenticator(office.database, PEPPER, older)
    assert isinstance(await authenticator.authenticate(older), Operator)


async def test_wrong_secrets_unknown_ids_kinds_and_peppers_are_one_refusal(
    office: Any, acme: TenantOwner
) -> None:
    key = (await office.key(acme)).text
    parsed = try_parse_key(key)
    assert parsed is not None
    await assert_refused(
        office,
        str(KeyText("live", parsed.key_id, create_key("live").secret)),
        str(KeyText("admin", parsed.key_id, parsed.secret)),
        str(KeyText("operator", parsed.key_id, parsed.secret)),
        *(str(create_key(kind)) for kind in ("live", "admin", "operator")),
        "junk",
        "",
    )
    with pytest.raises(AuthenticationError):
        await Authenticator(office.database, b"q" * 32, "").authenticate(key)


async def test_keys_that_ended_are_refused(office: Any, acme: TenantOwner) -> None:
    keys = [await office.key(acme) for _ in range(4)]
    expired, revoked, blocked, archived = keys
    async with office.database.writing() as session:
        ended = update(ApiKey).where(ApiKey.id == expired.row.id).values(expires_at=now())
        await session.execute(unscoped(ended, "a test"))
        row = await key_service.get_project_key(session, acme, revoked.row.id)
        await key_service.revoke(session, row, None)
        row = await key_service.get_project_key(session, acme, blocked.row.id)
        await key_service.change(session, row, None, KeyChange(is_blocked=True))
        project = await service.create_project(session, acme, "old")
        archived = await key_service.create_project_key(session, project, PEPPER, None)
        await service.archive_project(session, acme, project.id)
    await assert_refused(office, expired.text, revoked.text, blocked.text, archived.text)
    async with office.database.writing() as session:
        row = await key_service.get_project_key(session, acme, blocked.row.id)
        await key_service.change(session, row, None, KeyChange(is_blocked=False))
    assert await office.new_authenticator().authenticate(blocked.text)


async def test_a_deleted_tenants_keys_of_all_kinds_are_refused(
    office: Any, acme: TenantOwner
) -> None:
    key = await office.key(acme)
    async with office.database.writing() as session:
        admin = await key_service.create_admin_key(session, acme.tenant_id, PEPPER, None)
        await service.delete_tenant(session, "acme")
    await assert_refused(office, key.text, admin.text)


async def test_a_suspended_tenant_is_told_so_and_can_be_resumed(
    office: Any, acme: TenantOwner
) -> None:
    key = await office.key(acme)
    async with office.database.writing() as session:
        admin = await key_service.create_admin_key(session, acme.tenant_id, PEPPER, None)
        await service.suspend_tenant(session, "acme")
    for text in (key.text, admin.text):
        with pytest.raises(TenantSuspendedError) as caught:
            await office.authenticator.authenticate(text)
        assert (caught.value.status_code, caught.value.code) == (403, "tenant_suspended")
    # nobody learns of it without the right secret
    forged = KeyText("live", key.row.id, create_key("live").secret)
    await assert_refused(office, str(forged))
    async with office.database.writing() as session:
        await service.resume_tenant(session, "acme")
    office.authenticator.forget_all()
    assert await office.authenticator.authenticate(key.text)


async def test_only_the_hash_of_a_secret_is_stored(office: Any, acme: TenantOwner) -> None:
    key = await office.key(acme)
    stored = str([getattr(key.row, column.key) for column in ApiKey.__table__.columns])
    assert key.text.split("_")[3][:43] not in stored
    assert key.row.last4 == key.text[-4:]
    assert key.text not in repr(key)


async def test_tenant_names_are_unique_among_the_living(office: Any, acme: TenantOwner) -> None:
    async with office.database.writing() as session:
        with pytest.raises(ConflictError):
            await service.create_tenant(session, "acme")
        with pytest.raises(InvalidRequestError):
            await service.create_tenant(session, "tnt_x")
        await service.delete_tenant(session, "acme")
        await service.create_tenant(session, "acme")


async def test_the_uses_of_keys_are_written_together(office: Any, acme: TenantOwner) -> None:
    key, idle = await office.key(acme), await office.key(acme)
    async with office.database.writing() as session:
        admin = await key_service.create_admin_key(session, acme.tenant_id, PEPPER, None)
    began = now()
    async with office.authenticator.running():
        for text in (key.text, admin.text, office.operator_key):
            await office.authenticator.authenticate(text)
        await assert_refused(office, str(create_key("live")))
    async with office.database.reading() as session:
        used = await key_service.get_project_key(session, acme, key.row.id)
        used_admin: AdminKey = await key_service.get_admin_key(session, acme, admin.row.id)
        unused = await key_service.get_project_key(session, acme, idle.row.id)
    for row in (used, used_admin):
        assert row.last_used_at is not None
        assert began <= row.last_used_at <= now()
    assert unused.last_used_at is None


async def test_another_tenants_key_is_like_none(office: Any, acme: TenantOwner) -> None:
    key, other = await office.key(acme), await office.tenant("other")
    async with office.database.reading() as session:
        messages = set()
        for key_id in (key.row.id, create_key("live").key_id):
            with pytest.raises(NotFoundError) as caught:
                await key_service.get_project_key(session, other, key_id)
            messages.add(caught.value.message.replace(key_id, ""))
        assert len(messages) == 1
