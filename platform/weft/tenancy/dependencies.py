"""What the routes of tenants and keys share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request

from weft.tenancy.authenticator import Authenticator


async def get_authenticator(request: Request) -> Authenticator:
    """The app's."""
    authenticator: Authenticator = request.app.state.authenticator
    return authenticator


AuthenticatorDep = Annotated[Authenticator, Depends(get_authenticator)]


async def _forgetting(authenticator: AuthenticatorDep) -> AsyncIterator[None]:
    try:
        yield
    finally:
        authenticator.forget_all()


# of a route that changes what keys stand for. Named among the route's own dependencies it is
# entered before the route's session and left after that has committed.
changes_identities = Depends(_forgetting, scope="function")
