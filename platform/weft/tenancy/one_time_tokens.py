"""One-time tokens of invites and password resets: 256 random bits, of which only a hash is kept."""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal

TokenKind = Literal["invite", "reset"]


def create_token(kind: TokenKind) -> str:
    """`weft_<kind>_` and 32 random bytes in base64url, so that leaked ones can be scanned for."""
    return f"weft_{kind}_{secrets.token_urlsafe(32)}"


def hash_token(token: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
