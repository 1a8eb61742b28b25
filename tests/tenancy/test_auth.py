"""Which identity passes which of the marks that routes carry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import Request

from weft.errors import AuthenticationError, PermissionDeniedError
from weft.tenancy.auth import require, require_admin, require_any, require_operator
from weft.tenancy.principal import (
    ALL_PERMISSIONS,
    PLATFORM_PERMISSIONS,
    Identity,
    Operator,
    Principal,
    TenantAdmin,
)
from weft.tenancy.roles import ALL_ROLES, PERMISSIONS, TENANT_ROLES, grantable_scopes

KEY = Principal("tnt_a", "proj_a", "key", frozenset({"usage:read"}))
BARE_KEY = Principal("tnt_a", "proj_a", "bare", frozenset({"inference"}))
ADMIN = TenantAdmin("tnt_a", frozenset({"usage:read"}), "admin_key", "admin")
BARE_ADMIN = TenantAdmin("tnt_a", frozenset({"billing:read"}), "session", "user")
OPERATOR = Operator("op", frozenset({"tenants:read", "usage:read"}))
EVERYBODY: tuple[Identity, ...] = (KEY, BARE_KEY, ADMIN, BARE_ADMIN, OPERATOR)


def request_of(who: Identity) -> Request:
    """A request whose sender has been made out already."""
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": [], "state": {}})
    request.state.identity = who
    return request


@pytest.mark.parametrize(
    ("dependency", "passes"),
    [
        (require("usage:read"), (KEY,)),
        (require("inference"), (BARE_KEY,)),
        (require_admin("usage:read"), (ADMIN,)),
        (require_admin("billing:read"), (BARE_ADMIN,)),
        (require_admin("billing:write"), ()),
        (require_any(scope="usage:read", permission="usage:read"), (KEY, ADMIN)),
        (require_any(scope="inference", permission="billing:read"), (BARE_KEY, BARE_ADMIN)),
        (require_operator("tenants:read"), (OPERATOR,)),
        (require_operator("tenants:write"), ()),
    ],
)
async def test_a_mark_lets_in_whom_it_names_and_nobody_else(
    dependency: Callable[[Request], Awaitable[Identity]], passes: tuple[Identity, ...]
) -> None:
    for who in EVERYBODY:
        if who in passes:
            assert await dependency(request_of(who)) is who
        else:
            with pytest.raises(PermissionDeniedError):
                await dependency(request_of(who))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Basic eA==")],
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
    ],
)
async def test_no_one_credential_is_nobody(headers: list[tuple[bytes, bytes]]) -> None:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    with pytest.raises(AuthenticationError):
        await require("inference")(Request(scope | {"state": {}}))


def test_only_operators_have_permissions_on_the_platform() -> None:
    assert PERMISSIONS["operator"] == ALL_PERMISSIONS
    assert set(PERMISSIONS) == set(ALL_ROLES)
    for role in TENANT_ROLES:
        assert PERMISSIONS[role], role
        assert not PERMISSIONS[role] & PLATFORM_PERMISSIONS, role
        assert PERMISSIONS[role] <= PERMISSIONS["tenant-admin"], role


def test_who_may_read_only_writes_nothing() -> None:
    assert all(name.endswith(":read") for name in PERMISSIONS["read-only"])


def test_a_key_can_be_given_what_its_maker_may_do() -> None:
    assert grantable_scopes(PERMISSIONS["tenant-admin"]) == {
        "inference",
        "adapters:read",
        "adapters:write",
        "usage:read",
    }
    assert grantable_scopes(PERMISSIONS["billing"]) == {"usage:read"}
    assert grantable_scopes({"keys:write"}) == {"inference"}
    assert grantable_scopes(()) == frozenset()
