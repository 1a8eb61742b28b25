"""A key has at most what its maker has: at the time it is made, and at each time it is used."""

from __future__ import annotations

from typing import Any

import pytest

from weft.db.scope import TenantOwner
from weft.errors import PermissionDeniedError
from weft.tenancy import key_service, members, users
from weft.tenancy.authority import MAX_MAKERS
from weft.tenancy.key_service import KeyChange
from weft.tenancy.principal import Operator, Principal, TenantAdmin
from weft.tenancy.roles import PERMISSIONS, Role, grantable_scopes
from weft.tenancy.user_repository import UserRepository

PEPPER = b"p" * 32


async def scopes(office: Any, text: str) -> frozenset[str]:
    """Of a key, as a worker that remembers nothing sees it."""
    found = await office.new_authenticator().authenticate(text)
    assert isinstance(found, Principal)
    return found.scopes


async def person(office: Any, owner: TenantOwner, role: Role) -> TenantAdmin:
    async with office.database.writing() as session:
        user = await users.create_user(session, f"{role}@acme.example", "", password_hash="x")
        await members.add_member(session, user, owner.tenant_id, role)
    return TenantAdmin(owner.tenant_id, PERMISSIONS[role], "session", user.id)


async def test_a_persons_keys_follow_their_role_and_end_with_it(
    office: Any, acme: TenantOwner
) -> None:
    ada = await person(office, acme, "developer")
    await person(office, acme, "tenant-admin")  # one always stays
    key = (await office.key(acme, ada)).text
    assert await scopes(office, key) == grantable_scopes(PERMISSIONS["developer"])
    async with office.database.writing() as session:
        membership, user = await members.get_member(session, acme, ada.id)
        await members.change_role(session, membership, "billing")
    assert await scopes(office, key) == {"usage:read"}
    async with office.database.writing() as session:
        membership, user = await members.get_member(session, acme, ada.id)
        await members.change_role(session, membership, "developer")
    assert "inference" in await scopes(office, key)
    async with office.database.writing() as session:
        found = await UserRepository(session).find_user(ada.id)
        assert found is not None
        await users.disable_user(session, found)
    assert await scopes(office, key) == frozenset()


async def test_who_is_no_member_any_more_leaves_their_keys_nothing(
    office: Any, acme: TenantOwner
) -> None:
    ada = await person(office, acme, "developer")
    key = (await office.key(acme, ada)).text
    async with office.database.writing() as session:
        membership, _ = await members.get_member(session, acme, ada.id)
        await UserRepository(session).delete(membership)
    assert await scopes(office, key) == frozenset()


async def test_what_made_a_maker_bounds_as_well(office: Any, acme: TenantOwner) -> None:
    async with office.database.writing() as session:
        first = await key_service.create_admin_key(session, acme.tenant_id, PEPPER, None)
    maker = await office.authenticator.authenticate(first.text)
    assert isinstance(maker, TenantAdmin)
    async with office.database.writing() as session:
        second = await key_service.create_admin_key(session, acme.tenant_id, PEPPER, maker)
    maker = await office.authenticator.authenticate(second.text)
    key = (await office.key(acme, maker)).text
    assert "adapters:write" in await scopes(office, key)
    async with office.database.writing() as session:
        row = await key_service.get_admin_key(session, acme, first.row.id)
        grants = ["keys:write", "usage:read"]
        await key_service.change(session, row, None, KeyChange(grants=grants))
    assert await scopes(office, key) == {"inference", "usage:read"}
    narrowed = await office.new_authenticator().authenticate(second.text)
    assert isinstance(narrowed, TenantAdmin)
    assert narrowed.permissions == {"keys:write", "usage:read"}
    # revoked, it bounds by what it had
    async with office.database.writing() as session:
        row = await key_service.get_admin_key(session, acme, first.row.id)
        await key_service.revoke(session, row, None)
    assert await scopes(office, key) == {"inference", "usage:read"}


async def test_operators_keys_are_bounded_by_their_makers(office: Any, acme: TenantOwner) -> None:
    async with office.database.writing() as session:
        made = await key_service.create_operator_key(
            session, PEPPER, None, permissions=["platform:write", "tenants:write", "keys:write"]
        )
    maker = await office.authenticator.authenticate(made.text)
    assert isinstance(maker, Operator)
    async with office.database.writing() as session:
        with pytest.raises(PermissionDeniedError):
            await key_service.create_operator_key(
                session, PEPPER, maker, permissions=["billing:read"]
            )
        child = await key_service.create_operator_key(session, PEPPER, maker)
        row = await key_service.get_operator_key(session, made.row.id)
        await key_service.change(session, row, None, KeyChange(grants=["tenants:write"]))
    found = await office.new_authenticator().authenticate(child.text)
    assert isinstance(found, Operator)
    assert found.permissions == {"tenants:write"}


async def test_no_key_is_made_that_could_not_be_used(office: Any, acme: TenantOwner) -> None:
    maker: TenantAdmin | None = None
    for _ in range(MAX_MAKERS):
        async with office.database.writing() as session:
            made = await key_service.create_admin_key(session, acme.tenant_id, PEPPER, maker)
        maker = await office.authenticator.authenticate(made.text)
        assert isinstance(maker, TenantAdmin)
        assert maker.permissions == PERMISSIONS["tenant-admin"]
    with pytest.raises(PermissionDeniedError, match="Keys made by keys"):
        await office.key(acme, maker)
