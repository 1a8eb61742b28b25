"""ID tokens: only the provider's own, for us, for this sign-in and for now."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from weft.tenancy.oidc_tokens import (
    ALGORITHMS,
    PublicKey,
    TokenRefusedError,
    UnknownKeyError,
    read_keys,
    verify_id_token,
)

ISSUER, CLIENT, NONCE = "https://id.example", "weft", "n" * 43


@pytest.fixture(scope="module")
def rsa() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})


@pytest.fixture(scope="module")
def keys(rsa: RSAKey) -> tuple[PublicKey, ...]:
    return published(rsa)


def published(*keys: Any) -> tuple[PublicKey, ...]:
    return read_keys({"keys": [key.as_dict(private=False) for key in keys]})


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": ISSUER, "aud": CLIENT, "sub": "ada", "iat": now, "exp": now + 300, "nonce": NONCE,
        **changed,
    }  # fmt: skip
    return {key: value for key, value in made.items() if value is not None}


def sign(key: Any, header: dict[str, Any] | None = None, **changed: Any) -> str:
    header = header or {"alg": "RS256", "kid": "one"}
    return jwt.encode(header, claims(**changed), key, algorithms=[str(header["alg"])])


def verify(token: str, keys: tuple[PublicKey, ...]) -> dict[str, Any]:
    return verify_id_token(token, keys, issuer=ISSUER, client_id=CLIENT, nonce=NONCE)


def unsigned(header: dict[str, Any]) -> str:
    def encode(part: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()

    return f"{encode(header)}.{encode(claims())}."


def test_a_token_of_the_provider_for_us_is_taken(rsa: RSAKey, keys: tuple[PublicKey, ...]) -> None:
    assert verify(sign(rsa), keys)["sub"] == "ada"
    assert verify(sign(rsa, aud=[CLIENT]), keys)["sub"] == "ada"
    assert verify(sign(rsa, aud=[CLIENT, "other"], azp=CLIENT), keys)["sub"] == "ada"
    # a token without kid, where there is one key that it can be of
    assert verify(sign(rsa, {"alg": "PS256"}), keys)["sub"] == "ada"


def test_elliptic_curves_are_taken() -> None:
    key = ECKey.generate_key("P-256", {"kid": "ec", "alg": "ES256"})
    assert verify(sign(key, {"alg": "ES256", "kid": "ec"}), published(key))["sub"] == "ada"


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://id.example/"}, {"iss": "https://evil.example"}, {"iss": None},
        {"aud": "other"}, {"aud": ["other"]}, {"aud": None}, {"aud": []},
        {"aud": [CLIENT, "other"]}, {"aud": [CLIENT, "other"], "azp": "other"}, {"azp": "other"},
        {"exp": 1}, {"exp": None}, {"exp": "never"}, {"iat": None},
        {"iat": 4102444800}, {"nbf": 4102444800},
        {"nonce": "m" * 43}, {"nonce": None}, {"nonce": ""}, {"nonce": [NONCE]},
        {"sub": None}, {"sub": ""},
        {"at_hash": "AAAA"},
    ],
    ids=str,
)  # fmt: skip
def test_a_claim_that_is_not_right_is_refused(
    rsa: RSAKey, keys: tuple[PublicKey, ...], changed: dict[str, Any]
) -> None:
    token = sign(rsa, **changed)
    with pytest.raises(TokenRefusedError):
        verify_id_token(
            token, keys, issuer=ISSUER, client_id=CLIENT, nonce=NONCE, access_token="at"
        )


def test_an_unsigned_token_is_refused(keys: tuple[PublicKey, ...]) -> None:
    for algorithm in ("none", "None", "NONE", "", None, 1, ["RS256"]):
        with pytest.raises(TokenRefusedError):
            verify(unsigned({"alg": algorithm, "kid": "one"}), keys)


def test_the_public_key_is_no_secret_to_sign_with(rsa: RSAKey, keys: tuple[PublicKey, ...]) -> None:
    """HS256 keyed with the published key: as PEM, and as the JSON of the key set."""
    assert not any(name.startswith("HS") for name in ALGORITHMS)
    signed = unsigned({"alg": "HS256", "kid": "one"}).removesuffix(".")
    for secret in (rsa.as_pem(private=False), json.dumps(rsa.as_dict(private=False)).encode()):
        mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        signature = base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
        with pytest.raises(TokenRefusedError, match="algorithm"):
            verify(f"{signed}.{signature}", keys)


def test_another_key_under_the_same_name_is_refused(keys: tuple[PublicKey, ...]) -> None:
    other = RSAKey.generate_key(2048, {"kid": "one"})
    with pytest.raises(TokenRefusedError):
        verify(sign(other), keys)


def test_a_key_that_the_token_brings_along_is_not_used(keys: tuple[PublicKey, ...]) -> None:
    own = RSAKey.generate_key(2048, {"kid": "one"})
    for extra in (
        {"jwk": own.as_dict(private=False)},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/cert"},
    ):
        with pytest.raises(TokenRefusedError):
            verify(sign(own, {"alg": "RS256", "kid": "one", **extra}), keys)


@pytest.mark.parametrize(
    "kid",
    ["../../etc/passwd", "/dev/null", "one' OR '1'='1", "https://evil.example", "", 7, ["one"]],
)
def test_a_kid_only_names_one_of_the_keys(keys: tuple[PublicKey, ...], kid: object) -> None:
    with pytest.raises(UnknownKeyError):
        verify(unsigned({"alg": "RS256", "kid": kid}), keys)


def test_a_token_that_does_not_say_which_key_is_refused(rsa: RSAKey) -> None:
    other = RSAKey.generate_key(2048, {"kid": "two"})
    with pytest.raises(TokenRefusedError, match="which"):
        verify(sign(rsa, {"alg": "RS256"}), published(rsa, other))


def test_tokens_that_begin_alike_are_told_apart(rsa: RSAKey, keys: tuple[PublicKey, ...]) -> None:
    """Whatever was verified before, each token stands for itself, to its last character."""
    good = sign(rsa)
    head, body, signature = good.split(".")
    verify(good, keys)
    for num_same in (20, 64, len(good) - 20):
        forged = good[:num_same] + "".join("A" if c != "A" else "B" for c in good[num_same:])
        with pytest.raises(TokenRefusedError):
            verify(forged, keys)
    other_body = sign(rsa, sub="eve").split(".")[1]
    with pytest.raises(TokenRefusedError):
        verify(f"{head}.{other_body}.{signature}", keys)
    with pytest.raises(TokenRefusedError):
        verify(f"{head}.{body}.", keys)
    verify(good, keys)


def test_what_is_no_token_is_refused(keys: tuple[PublicKey, ...]) -> None:
    for text in ("", "a", "a.b", "a.b.c", "é.b.c", "e30.e30.", "x" * 10**6, "." * 100):
        with pytest.raises(TokenRefusedError):
            verify(text, keys)


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_only_strong_keys_for_signatures_are_read(rsa: RSAKey) -> None:
    good = rsa.as_dict(private=False)
    weak = RSAKey.generate_key(1024, {"kid": "weak"}).as_dict(private=False)
    document = {
        "keys": [
            {**good, "use": "enc"}, {"kty": "oct", "k": "c2VjcmV0"}, {"kty": "RSA"}, "junk", None,
            {"kty": "unknown"}, weak, good,
        ]
    }  # fmt: skip
    assert [key.get("kid") for key in read_keys(document)] == ["one"]
    no_keys: tuple[dict[str, Any], ...] = ({}, {"keys": "x"}, {"keys": {}})
    for junk in no_keys:
        with pytest.raises(TokenRefusedError):
            read_keys(junk)
