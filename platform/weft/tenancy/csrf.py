"""Tokens that show that a page of ours sent a request: random, and bound to the session.

A page reads the token from its cookie and sends it in a header; another site can do neither. The
binding keeps a token that an attacker planted (from a sister host, say) from being right.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

_NONCE_BYTES = 16
_TOKEN_CHARS = 64  # of 16 + 32 bytes in base64


def create_csrf_token(key: bytes, session_hash: str) -> str:
    """A token for one session: nonce and HMAC-SHA-256, in base64url."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return base64.urlsafe_b64encode(nonce + _mac(key, session_hash, nonce)).decode()


def is_csrf_token(key: bytes, session_hash: str, header: str | None, cookie: str | None) -> bool:
    """Whether the header repeats the cookie, and both are a token of this session."""
    if not header or not cookie or len(header) != _TOKEN_CHARS or not header.isascii():
        return False
    if not hmac.compare_digest(header.encode(), cookie.encode(errors="replace")):
        return False
    try:
        raw = base64.b64decode(header, altchars=b"-_", validate=True)
    except ValueError:
        return False
    nonce, mac = raw[:_NONCE_BYTES], raw[_NONCE_BYTES:]
    return hmac.compare_digest(mac, _mac(key, session_hash, nonce))


def _mac(key: bytes, session_hash: str, nonce: bytes) -> bytes:
    return hmac.new(key, session_hash.encode() + b"\0" + nonce, hashlib.sha256).digest()
