"""The marks that every route carries: who may call it. A route without one is a bug.

`Depends(require("inference"))` for tenants, `Depends(operator)` for the operator,
`Depends(public)` for what needs no key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from weft.errors import AuthenticationError, PermissionDeniedError
from weft.tenancy.principal import Operator, Principal, Scope
from weft.tenancy.service import Authenticator

AUTH_MARK = "weft_auth"


async def _identify(request: Request) -> Principal | Operator:
    headers = request.headers.getlist("authorization")
    if len(headers) != 1:
        raise AuthenticationError
    kind, _, text = headers[0].partition(" ")
    if kind.lower() != "bearer":
        raise AuthenticationError
    authenticator: Authenticator = request.app.state.authenticator
    # its own short session: a generation must not hold a connection
    async with request.app.state.database.reading() as session:
        who = await authenticator.authenticate(session, text.strip())
    if isinstance(who, Principal):
        request.state.tenant_id = who.tenant_id
    return who


def require(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that gives the tenant's principal, with this scope."""

    async def principal(request: Request) -> Principal:
        who = await _identify(request)
        if isinstance(who, Operator):
            raise PermissionDeniedError("The operator key cannot act for a tenant.")
        if scope not in who.scopes:
            raise PermissionDeniedError(f"This key lacks the scope '{scope}'.")
        return who

    setattr(principal, AUTH_MARK, scope)
    return principal


async def operator(request: Request) -> Operator:
    """A dependency for the operator's routes."""
    who = await _identify(request)
    if not isinstance(who, Operator):
        raise PermissionDeniedError("This route needs the operator key.")
    return who


async def public() -> None:
    """The mark of a route that needs no key."""


setattr(operator, AUTH_MARK, "operator")
setattr(public, AUTH_MARK, "public")
