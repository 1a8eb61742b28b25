"""The authorization code flow with PKCE, state and nonce: to a provider and back with claims.

What is to be remembered until the browser is back goes with it, in a cookie that only we can read
and that only this browser has: nothing is stored for people who never come back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from weft.db.ids import now
from weft.errors import WeftError
from weft.sealing import UnsealError, seal, unseal
from weft.tenancy.oidc_documents import Metadata, ProviderDocuments
from weft.tenancy.oidc_http import TIMEOUT_S, CappedTransport, ProviderError
from weft.tenancy.oidc_tokens import TokenRefusedError, UnknownKeyError, verify_id_token

FLOW_TTL_S = 600
_SCOPE = "openid email profile"
_USE = "sign-in with a provider"
_MAX_PARAMETER_CHARS = 4096
logger = logging.getLogger("weft.tenancy")


class ProviderSignInError(WeftError):
    """The browser came back with something that is not to be trusted, or too late."""

    status_code = 401
    type = "invalid_request_error"
    code = "sign_in_failed"

    def __init__(self, message: str = "Signing in did not work; please start again.") -> None:
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class OidcClient:
    """We, as the provider knows us. `secret` None: a public client."""

    provider_id: str
    issuer: str
    client_id: str
    secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Started:
    """Where to send the browser, and the cookie that it takes along."""

    url: str
    cookie: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Finished:
    """What the provider says of the person, and where they wanted to go."""

    claims: Mapping[str, Any]
    return_to: str


@dataclass(frozen=True, slots=True)
class OidcFlow:
    """`key` seals the cookies; `documents` are the providers' own."""

    documents: ProviderDocuments
    key: bytes = field(repr=False)

    async def start(self, client: OidcClient, redirect_uri: str, return_to: str) -> Started:
        """Begin a sign-in. ProviderError where the provider cannot be reached."""
        metadata = await self.documents.metadata(client.issuer)
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        async with _oauth(client, metadata, redirect_uri) as oauth:
            url, _ = oauth.create_authorization_url(
                metadata.authorization_endpoint, state=state, code_verifier=verifier, nonce=nonce
            )
        remembered = {
            "provider": client.provider_id, "state": state, "nonce": nonce, "verifier": verifier,
            "return_to": return_to, "expires_at": now() + FLOW_TTL_S,
        }  # fmt: skip
        return Started(url, seal(self.key, _USE, json.dumps(remembered)))

    async def finish(
        self,
        client: OidcClient,
        redirect_uri: str,
        parameters: Mapping[str, str],
        cookie: str | None,
    ) -> Finished:
        """Claims of whom the provider vouches for. ProviderSignInError where the browser is not the
        one that began, the provider refused, or its token is not to be trusted."""
        flow = self._remembered(client, parameters, cookie)
        if "error" in parameters:
            logger.warning("a provider refused: %s", parameters["error"][:200].encode())
            raise ProviderSignInError("The provider did not sign you in.")
        code, issuer = parameters.get("code"), parameters.get("iss")
        if not code or len(code) > _MAX_PARAMETER_CHARS or issuer not in (None, client.issuer):
            raise ProviderSignInError
        metadata = await self.documents.metadata(client.issuer)
        token = await _exchange(client, metadata, redirect_uri, code, flow["verifier"])
        try:
            claims = await self._verify(client, token, flow["nonce"])
        except TokenRefusedError as error:
            logger.warning("an ID token of %s is refused: %s", client.issuer, error)
            raise ProviderSignInError from error
        return Finished(claims, flow["return_to"])

    def _remembered(
        self, client: OidcClient, parameters: Mapping[str, str], cookie: str | None
    ) -> dict[str, Any]:
        """What was remembered at the start, if it is of this browser, provider and sign-in."""
        try:
            flow: dict[str, Any] = json.loads(unseal(self.key, _USE, cookie or ""))
        except UnsealError:
            raise ProviderSignInError from None
        state = parameters.get("state", "")
        is_ours = secrets.compare_digest(state.encode(errors="replace"), flow["state"].encode())
        if not is_ours or flow["provider"] != client.provider_id or now() >= flow["expires_at"]:
            raise ProviderSignInError
        return flow

    async def _verify(
        self, client: OidcClient, token: Mapping[str, Any], nonce: str
    ) -> dict[str, Any]:
        id_token = token.get("id_token")
        if not isinstance(id_token, str):
            raise TokenRefusedError("there is no ID token")
        expected: dict[str, Any] = {
            "issuer": client.issuer, "client_id": client.client_id, "nonce": nonce,
            "access_token": token.get("access_token"),
        }  # fmt: skip
        try:
            keys = await self.documents.keys(client.issuer)
            return verify_id_token(id_token, keys, **expected)
        except UnknownKeyError:
            keys = await self.documents.keys(client.issuer, is_refresh=True)
            return verify_id_token(id_token, keys, **expected)


def _oauth(client: OidcClient, metadata: Metadata, redirect_uri: str) -> AsyncOAuth2Client:
    return AsyncOAuth2Client(
        client_id=client.client_id,
        client_secret=client.secret,
        token_endpoint_auth_method="none" if client.secret is None else metadata.auth_method,
        scope=_SCOPE,
        redirect_uri=redirect_uri,
        code_challenge_method="S256",
        transport=CappedTransport(),
        follow_redirects=False,
        timeout=TIMEOUT_S,
    )


async def _exchange(
    client: OidcClient, metadata: Metadata, redirect_uri: str, code: str, verifier: str
) -> Mapping[str, Any]:
    """The provider's tokens for the code."""
    try:
        async with asyncio.timeout(TIMEOUT_S), _oauth(client, metadata, redirect_uri) as oauth:
            token: Mapping[str, Any] = await oauth.fetch_token(
                metadata.token_endpoint,
                grant_type="authorization_code",
                code=code,
                code_verifier=verifier,
            )
            return token
    except OAuthError as error:
        logger.warning("%s gives no tokens: %s", client.issuer, str(error)[:200].encode())
        raise ProviderSignInError from error
    except (httpx2.HTTPError, TimeoutError, ValueError) as error:
        raise ProviderError("The provider's tokens could not be read.") from error
