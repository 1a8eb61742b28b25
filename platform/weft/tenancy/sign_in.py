"""Who a browser's request comes from, by its cookies, and the cookies of a new session.

A cookie is sent by the browser whoever's page asks for it. So what changes something needs a sign
that a page of ours asked: its origin, and a token that only our pages can read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from weft.db.database import Database
from weft.errors import PermissionDeniedError
from weft.tenancy.accounts import Accounts
from weft.tenancy.cookies import CSRF, SESSION, Cookies
from weft.tenancy.csrf import create_csrf_token, is_csrf_token
from weft.tenancy.invites import Invites
from weft.tenancy.oidc_flow import OidcFlow
from weft.tenancy.origins import CrossSiteError, Origins
from weft.tenancy.session_upkeep import SessionUpkeep
from weft.tenancy.sessions import (
    NewSession,
    SessionPolicy,
    SignedIn,
    SignedOutError,
    find_signed_in,
    hash_session_secret,
    is_session_secret,
)

CSRF_HEADER = "x-csrf-token"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
logger = logging.getLogger("weft.tenancy")


class CsrfError(PermissionDeniedError):
    """Nothing shows that a page of ours sent this."""

    code = "csrf_failed"


@dataclass(frozen=True, slots=True)
class SignIn:
    """What the routes of signing in work with. The keys are secret."""

    database: Database
    accounts: Accounts
    invites: Invites
    oidc: OidcFlow
    policy: SessionPolicy
    origins: Origins
    cookies: Cookies
    upkeep: SessionUpkeep
    csrf_key: bytes = field(repr=False)
    encryption_key: bytes = field(repr=False)

    def has_cookie(self, request: Request) -> bool:
        """Whether the request says that a person sent it."""
        return self.cookies.read(request, SESSION) is not None

    async def find(self, request: Request) -> SignedIn | None:
        """Who is signed in, if anybody. For what changes nothing."""
        secret = self.cookies.read(request, SESSION)
        if secret is None:
            return None
        async with self.database.reading() as session:
            who = await find_signed_in(session, secret, self.policy)
        if who is not None:
            self.upkeep.saw(who)
        return who

    async def identify(self, request: Request) -> SignedIn:
        """Who is signed in: SignedOutError for nobody, CsrfError where a request that changes
        something may come from another site's page."""
        who = await self.find(request)
        if who is None:
            raise SignedOutError
        if request.method not in _SAFE_METHODS:
            self.check_origin(request)
            token, header = self.cookies.read(request, CSRF), request.headers.get(CSRF_HEADER)
            if not is_csrf_token(self.csrf_key, who.secret_hash, header, token):
                raise CsrfError(
                    f"The header '{CSRF_HEADER}' must repeat the cookie '"
                    f"{self.cookies.name(CSRF)}' of this session."
                )
        return who

    def check_origin(self, request: Request) -> None:
        """CsrfError unless one of our own pages sent the request: also what makes a session must
        not come from elsewhere, or a person would work in somebody else's."""
        try:
            self.origins.check(request.headers, port_of(request))
        except CrossSiteError as error:
            logger.warning("refused a request from another site: %s", error)
            raise CsrfError(f"This request did not come from a page of ours: {error}.") from None

    def replaced_hash(self, request: Request) -> str | None:
        """The hash of the session that the browser has, live or not."""
        secret = self.cookies.read(request, SESSION)
        return hash_session_secret(secret) if secret and is_session_secret(secret) else None

    def give(self, response: Response, made: NewSession) -> str:
        """Set the cookies of a new session; gives its CSRF token."""
        max_age_s = made.row.expires_at - made.row.created_at
        self.cookies.set(response, SESSION, made.secret, max_age_s)
        token = create_csrf_token(self.csrf_key, made.row.secret_hash)
        self.cookies.set(response, CSRF, token, max_age_s)
        return token

    def take(self, response: Response) -> None:
        """Clear the cookies of a session that has ended."""
        self.cookies.clear(response, SESSION, CSRF)


def port_of(request: Request) -> int:
    """The port that the server listens on, as the server knows it."""
    server = request.scope.get("server")
    return server[1] if server is not None and server[1] is not None else 80


def get_sign_in(request: Request) -> SignIn:
    """The app's sign-in."""
    sign_in: SignIn = request.app.state.sign_in
    return sign_in


async def _sign_in(request: Request) -> SignIn:
    return get_sign_in(request)


SignInDep = Annotated[SignIn, Depends(_sign_in)]
