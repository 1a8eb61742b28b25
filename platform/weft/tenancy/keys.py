"""The text form of keys: `weft_<kind>_<key id>_<secret><checksum>`.

The key id is 12 characters of base58, the secret 32 random bytes in base62 (43 characters), the
checksum CRC-32 of all before it in base62 (6 characters), so that junk is refused without a look
into the database and leaked keys can be scanned for. Pure text: knows no storage.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import zlib
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

# a project's key, a tenant's admin key, an operator's key
KeyKind = Literal["live", "admin", "operator"]

_KINDS = frozenset(get_args(KeyKind))
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_CHARS, _SECRET_CHARS, _CHECKSUM_CHARS = 12, 43, 6


@dataclass(frozen=True, slots=True)
class KeyText:
    """The parts of a well-formed key."""

    kind: KeyKind
    key_id: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        body = f"weft_{self.kind}_{self.key_id}_{self.secret}"
        return body + _checksum(body)

    @property
    def last4(self) -> str:
        return str(self)[-4:]


def create_key(kind: KeyKind, key_id: str | None = None) -> KeyText:
    """A key with a new random secret; of a new id, or of the one that it is rotated on."""
    if key_id is None:
        key_id = "".join(secrets.choice(_BASE58) for _ in range(_ID_CHARS))
    secret = _base62(int.from_bytes(secrets.token_bytes(32), "big"), _SECRET_CHARS)
    return KeyText(kind, key_id, secret)


def try_parse_key(text: str) -> KeyText | None:
    """The parts of `text`, or None where it is no key of ours or is mistyped."""
    parts = text.split("_")
    if len(parts) != 4 or parts[0] != "weft" or len(text) > 100:
        return None
    _, kind, key_id, tail = parts
    if len(key_id) != _ID_CHARS or not set(key_id) <= set(_BASE58):
        return None
    if len(tail) != _SECRET_CHARS + _CHECKSUM_CHARS or not set(tail) <= set(_BASE62):
        return None
    if not hmac.compare_digest(_checksum(text[:-_CHECKSUM_CHARS]), text[-_CHECKSUM_CHARS:]):
        return None
    if kind not in _KINDS:
        return None
    return KeyText(cast(KeyKind, kind), key_id, tail[:-_CHECKSUM_CHARS])


def hash_secret(secret: str, pepper: bytes) -> str:
    """HMAC-SHA-256 in hex. The secret has 256 random bits, so a slow hash would add nothing."""
    return hmac.new(pepper, secret.encode(), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_CHARS)


def _base62(value: int, num_chars: int) -> str:
    chars = []
    for _ in range(num_chars):
        value, digit = divmod(value, 62)
        chars.append(_BASE62[digit])
    return "".join(reversed(chars))
