"""The marks that every route carries: who may call it. A route without one is a bug.

`Depends(require("inference"))` is for project keys, `Depends(require_admin("projects:write"))` for
who administers a tenant, `Depends(require_operator("tenants:read"))` for operators,
`Depends(require_any(scope=..., permission=...))` for the first two alike, `Depends(signed_in)` for
people about themselves, `Depends(public)` for what needs no key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Literal

from fastapi import Request

from weft.errors import (
    AuthenticationError,
    InvalidRequestError,
    MismatchedHeaderError,
    PermissionDeniedError,
)
from weft.tenancy.authenticator import Authenticator
from weft.tenancy.client import client_of
from weft.tenancy.principal import (
    Identity,
    Operator,
    Permission,
    Principal,
    Scope,
    TenantAdmin,
)
from weft.tenancy.sessions import SignedIn
from weft.tenancy.sign_in import get_sign_in

AUTH_MARK = "weft_auth"


@dataclass(frozen=True, slots=True)
class AuthMark:
    """What a route's dependency demands; `scope` of project keys, `permission` of the others."""

    audience: Literal["public", "key", "admin", "key or admin", "operator", "person"]
    scope: Scope | None = None
    permission: Permission | None = None


async def identify(request: Request) -> Identity:
    """Who sent the request, looked up once; AuthenticationError where nobody can be made out."""
    known: Identity | None = getattr(request.state, "identity", None)
    if known is not None:
        return known
    if "cookie" in request.headers and get_sign_in(request).has_cookie(request):
        who = await _identify_person(request)
    else:
        who = await _identify_key(request)
    if not isinstance(who, Operator):
        request.state.tenant_id = who.tenant_id
    _check_named(request, who)
    request.state.identity = who
    return who


def _check_named(request: Request, who: Identity) -> None:
    """MismatchedHeaderError where the client means another organization or project than it has:
    a client that is set up wrongly should not spend another's money."""
    tenant_id = None if isinstance(who, Operator) else who.tenant_id.encode()
    project_id = who.project_id.encode() if isinstance(who, Principal) else None
    # every request comes this way, so the headers are gone through once
    for name, value in request.scope["headers"]:
        if name == b"openai-organization" and value not in (b"", tenant_id):
            raise MismatchedHeaderError("OpenAI-Organization", "organization")
        if name == b"openai-project" and value not in (b"", project_id):
            raise MismatchedHeaderError("OpenAI-Project", "project")


async def _identify_key(request: Request) -> Identity:
    headers = request.headers.getlist("authorization")
    if len(headers) != 1:
        raise AuthenticationError
    kind, _, text = headers[0].partition(" ")
    if kind.lower() != "bearer":
        raise AuthenticationError
    authenticator: Authenticator = request.app.state.authenticator
    client = client_of(request)
    found = await authenticator.authenticate(text.strip(), client.address)
    return replace(found, client=client)


async def _identify_person(request: Request) -> Identity:
    who = (await signed_in(request)).identity(client_of(request))
    if who is None:
        raise PermissionDeniedError("Choose the tenant to act for: POST /auth/v1/session.")
    return who


async def signed_in(request: Request) -> SignedIn:
    """A dependency for the routes of a person's own account: needs a session, and no role."""
    if "authorization" in request.headers:
        # which of the two counts must not depend on who reads the request
        raise InvalidRequestError(
            "Send a key or the cookie of a session, not both.", code="ambiguous_credentials"
        )
    return await get_sign_in(request).identify(request)


def require(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that gives the project key's principal, with this scope."""

    async def principal(request: Request) -> Principal:
        return _with_scope(await identify(request), scope)

    setattr(principal, AUTH_MARK, AuthMark("key", scope=scope))
    return principal


def require_admin(permission: Permission) -> Callable[[Request], Awaitable[TenantAdmin]]:
    """A dependency that gives who administers the tenant, with this permission."""

    async def admin(request: Request) -> TenantAdmin:
        return _with_permission(await identify(request), permission)

    setattr(admin, AUTH_MARK, AuthMark("admin", permission=permission))
    return admin


def require_any(
    *, scope: Scope, permission: Permission
) -> Callable[[Request], Awaitable[Principal | TenantAdmin]]:
    """A dependency for what a project key with `scope` and an administrator may do alike."""

    async def either(request: Request) -> Principal | TenantAdmin:
        who = await identify(request)
        if isinstance(who, Principal):
            return _with_scope(who, scope)
        return _with_permission(who, permission)

    setattr(either, AUTH_MARK, AuthMark("key or admin", scope=scope, permission=permission))
    return either


def require_operator(permission: Permission) -> Callable[[Request], Awaitable[Operator]]:
    """A dependency that gives the operator, with this permission."""

    async def operator(request: Request) -> Operator:
        who = await identify(request)
        if not isinstance(who, Operator):
            raise PermissionDeniedError("This route is for operators.")
        if permission not in who.permissions:
            raise PermissionDeniedError(f"The permission '{permission}' is needed for this.")
        return who

    setattr(operator, AUTH_MARK, AuthMark("operator", permission=permission))
    return operator


async def public() -> None:
    """The mark of a route that needs no key."""


setattr(public, AUTH_MARK, AuthMark("public"))
setattr(signed_in, AUTH_MARK, AuthMark("person"))


def _with_scope(who: Identity, scope: Scope) -> Principal:
    if isinstance(who, Operator):
        raise PermissionDeniedError("An operator cannot act for a tenant.")
    if isinstance(who, TenantAdmin):
        raise PermissionDeniedError("This needs a project's key; an administrator is none.")
    if scope not in who.scopes:
        raise PermissionDeniedError(f"This key lacks the scope '{scope}'.")
    return who


def _with_permission(who: Identity, permission: Permission) -> TenantAdmin:
    if isinstance(who, Operator):
        raise PermissionDeniedError("An operator cannot act for a tenant.")
    if isinstance(who, Principal):
        raise PermissionDeniedError("This needs an admin key; a project's key is none.")
    if permission not in who.permissions:
        raise PermissionDeniedError(f"The permission '{permission}' is needed for this.")
    return who
