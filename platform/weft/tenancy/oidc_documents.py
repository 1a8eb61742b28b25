"""What providers publish about themselves: their endpoints and keys, cached for an hour.

The cache is bounded, and a token signed with a key that is not there makes it read the keys again,
but not more often than once a minute: whoever sends junk cannot make us flood a provider.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from authlib.oidc.discovery import OpenIDProviderMetadata

from weft.tenancy.oidc_http import ProviderError, check_url, fetch_json
from weft.tenancy.oidc_tokens import PublicKey, TokenRefusedError, read_keys

MAX_PROVIDERS = 256
TTL_S = 3600.0
MIN_REFRESH_S = 60.0


@dataclass(frozen=True, slots=True)
class Metadata:
    """A provider's endpoints. `auth_method`: how a client with a secret shows it."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    auth_method: str


@dataclass(slots=True)
class _Entry:
    metadata: Metadata | None = None
    read_at_s: float = 0.0
    keys: tuple[PublicKey, ...] = ()
    keys_read_at_s: float | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ProviderDocuments:
    """Of one worker, by issuer. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    async def metadata(self, issuer: str) -> Metadata:
        """The provider's endpoints; ProviderError where they cannot be had or trusted."""
        entry = self._entry(issuer)
        async with entry.lock:
            if entry.metadata is None or self._clock() >= entry.read_at_s + TTL_S:
                entry.metadata = await discover(issuer)
                entry.read_at_s = self._clock()
            return entry.metadata

    async def keys(self, issuer: str, *, is_refresh: bool = False) -> tuple[PublicKey, ...]:
        """The provider's keys; with `is_refresh`, newer ones if it may have some."""
        metadata = await self.metadata(issuer)
        entry = self._entry(issuer)
        async with entry.lock:
            age_s = None if entry.keys_read_at_s is None else self._clock() - entry.keys_read_at_s
            if age_s is None or age_s >= (MIN_REFRESH_S if is_refresh else TTL_S):
                document = await fetch_json(metadata.jwks_uri, "keys")
                try:
                    entry.keys = read_keys(document)
                except TokenRefusedError as error:
                    raise ProviderError("The provider's keys cannot be read.") from error
                entry.keys_read_at_s = self._clock()
            return entry.keys

    def _entry(self, issuer: str) -> _Entry:
        entry = self._entries.setdefault(issuer, _Entry())
        self._entries.move_to_end(issuer)
        while len(self._entries) > MAX_PROVIDERS:
            self._entries.popitem(last=False)
        return entry


async def discover(issuer: str) -> Metadata:
    """Read a provider's own description (OpenID Connect Discovery 4)."""
    url = check_url(issuer, "issuer").rstrip("/") + "/.well-known/openid-configuration"
    found = OpenIDProviderMetadata(await fetch_json(url, "configuration"))
    if found.get("issuer") != issuer:
        # else one provider could speak for another
        raise ProviderError("The provider's configuration is of another issuer.")
    methods = _names(found, "token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    method = next((m for m in ("client_secret_basic", "client_secret_post") if m in methods), None)
    challenges = _names(found, "code_challenge_methods_supported")
    if challenges and "S256" not in challenges:
        raise ProviderError("The provider does not take PKCE's S256.")
    if "code" not in (_names(found, "response_types_supported") or ["code"]):
        raise ProviderError("The provider does not give authorization codes.")
    if method is None and "none" not in methods:
        raise ProviderError("The provider takes a client's secret in no way that we have.")
    return Metadata(
        issuer=issuer,
        authorization_endpoint=check_url(found.get("authorization_endpoint"), "sign-in page"),
        token_endpoint=check_url(found.get("token_endpoint"), "token endpoint"),
        jwks_uri=check_url(found.get("jwks_uri"), "address of keys"),
        auth_method=method or "none",
    )


def _names(document: OpenIDProviderMetadata, key: str) -> list[str]:
    value = document.get(key)
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
