"""Encrypts what must be kept but not be readable where it is kept: AES-256-GCM."""

from __future__ import annotations

import base64
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12
_VERSION = "v1."


class UnsealError(Exception):
    """The text was not sealed with this key for this use, or was altered."""


def seal(key: bytes, use: str, text: str) -> str:
    """`text` encrypted with a key of 32 bytes, in base64url without padding, which cookies
    take as it is. `use` is authenticated: what was sealed for one is no good for another."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, text.encode(), use.encode())
    return _VERSION + base64.urlsafe_b64encode(nonce + sealed).rstrip(b"=").decode()


def unseal(key: bytes, use: str, sealed: str) -> str:
    """What was sealed; UnsealError for anything else."""
    if not sealed.startswith(_VERSION) or not sealed.isascii():
        raise UnsealError
    body = sealed.removeprefix(_VERSION)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        text = AESGCM(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], use.encode())
    except (ValueError, InvalidTag):
        raise UnsealError from None
    return text.decode()
