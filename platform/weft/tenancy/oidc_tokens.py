"""Verifies ID tokens: signature, issuer, audience, times and nonce (OpenID Connect Core 3.1.3.7).

Pure: the keys are given. A token's header chooses among them and nothing else: no algorithm that is
not listed here, no key that the provider did not publish.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

# asymmetric ones: with HS256 the key that everybody may read would sign as well as verify
ALGORITHMS = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA",
    "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "EC", "ES384": "EC", "ES512": "EC",
    "EdDSA": "OKP", "Ed25519": "OKP",
}  # fmt: skip
MAX_TOKEN_CHARS = 64 * 1024
MAX_KEYS = 64
MIN_RSA_BITS = 2048
LEEWAY_S = 60

PublicKey = RSAKey | ECKey | OKPKey


class TokenRefusedError(Exception):
    """The token is not to be trusted; the message says why, for the log."""


class UnknownKeyError(TokenRefusedError):
    """It is signed with a key that is not among those given: the provider may have new ones."""


def read_keys(document: dict[str, Any]) -> tuple[PublicKey, ...]:
    """The keys of a JWKS document that can verify signatures; what is no such key is left out."""
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise TokenRefusedError("the provider's keys are no list")
    keys = []
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        if entry.get("kty") not in ALGORITHMS.values():
            continue
        try:
            key = JWKRegistry.import_key(entry)
        except (JoseError, ValueError, TypeError, KeyError):
            continue  # of a kind that is for other clients
        if isinstance(key, RSAKey | ECKey | OKPKey) and _is_strong(key):
            keys.append(key)
    return tuple(keys)


def verify_id_token(
    token: str,
    keys: Sequence[PublicKey],
    *,
    issuer: str,
    client_id: str,
    nonce: str,
    access_token: str | None = None,
) -> dict[str, Any]:
    """The claims of a token that the issuer made for this client and this sign-in."""
    if len(token) > MAX_TOKEN_CHARS or not token.isascii():
        raise TokenRefusedError("the token is too long, or no token")
    key, algorithm = _choose_key(_read_header(token), keys)
    try:
        decoded = jwt.decode(token, key, algorithms=[algorithm])
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            options={
                "iss": {"essential": True, "value": issuer},
                "aud": {"essential": True, "value": client_id},
                "sub": {"essential": True},
                "nonce": {"essential": True, "value": nonce},
            },
            params={"nonce": nonce, "client_id": client_id, "access_token": access_token},
        )
        claims.validate(leeway=LEEWAY_S)
    except (JoseError, ValueError, TypeError) as error:
        raise TokenRefusedError(f"the token is refused: {error}") from error
    return dict(claims)


def _read_header(token: str) -> dict[str, Any]:
    first, _, _ = token.partition(".")
    try:
        header = json.loads(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    except (ValueError, RecursionError):
        raise TokenRefusedError("the token's header is no JSON") from None
    if not isinstance(header, dict):
        raise TokenRefusedError("the token's header is no JSON object")
    return header


def _choose_key(header: dict[str, Any], keys: Sequence[PublicKey]) -> tuple[PublicKey, str]:
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenRefusedError("the token's algorithm is not accepted")
    fitting = [
        key
        for key in keys
        if key.key_type == ALGORITHMS[algorithm] and key.get("alg") in (None, algorithm)
    ]
    if kid is not None:
        # compared, and used for nothing else: no file, no URL, no statement
        fitting = [key for key in fitting if key.get("kid") == kid]
    if not fitting:
        raise UnknownKeyError("no key of the provider fits the token")
    if len(fitting) > 1:
        raise TokenRefusedError("the token does not say which of the provider's keys it is of")
    return fitting[0], algorithm


def _is_strong(key: PublicKey) -> bool:
    return not isinstance(key, RSAKey) or key.public_key.key_size >= MIN_RSA_BITS
