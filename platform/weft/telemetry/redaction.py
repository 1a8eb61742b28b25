"""Takes secrets out of what is written down, in logs and in the audit trail. Pure.

By name (`password`, `token`), and by form wherever it stands: our own keys, those of common
services, credentials in URLs and headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

REDACTED = "[redacted]"
_MAX_TEXT = 1024
_MAX_DEPTH = 8
_MAX_ITEMS = 256

_SECRET_NAME = re.compile(
    # "tokens" are counted, a "token" is handed over
    r"(^|[_\-.])(secret|password|passwd|passphrase|token|credentials?|authorization|cookies?|pepper"
    r"|hmac|private_key|api_key|access_key|secret_key)($|[_\-.])",
    re.IGNORECASE,
)

_SECRET_FORMS = re.compile(
    r"""
      weft_[a-z]{2,16}_[1-9A-HJ-NP-Za-km-z]{12}_[0-9A-Za-z]+   # ours
    | \bhf_[0-9A-Za-z]{16,}                                     # Hugging Face
    | \bsk-[0-9A-Za-z_-]{16,}                                   # OpenAI and its likes
    | \b(?:sk|rk|whsec)_(?:live_|test_)?[0-9A-Za-z]{16,}        # Stripe
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                             # AWS
    | \beyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]* # a JWT
    | (?<=://)[^/\s:@]{0,256}:[^/\s@]{1,256}(?=@)               # a URL's user and password
    | (?<=[?&])(?:X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|token|sig|signature)=[^&\s]+
    | \b(?:Bearer|Basic)\s+[0-9A-Za-z._~+/=-]{8,}
    """,
    re.VERBOSE | re.IGNORECASE,
)


def redacted(value: object) -> object:
    """`value` as JSON can say it, without secrets, and bounded in depth, items and text."""
    return _redacted(value, 0)


def redact_text(text: str) -> str:
    """`text` with everything in it that has the form of a secret replaced."""
    return _SECRET_FORMS.sub(REDACTED, text)


def printable(text: str, max_chars: int) -> str:
    """`text` without control characters and lone surrogates, and cut."""
    cut = text[:max_chars].encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() else "?" for char in cut)


def is_secret_name(name: str) -> bool:
    """Whether what has this name is likely to be a secret."""
    return _SECRET_NAME.search(name) is not None


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _redacted(value: object, depth: int) -> object:
    if _is_plain(value):
        return value
    if isinstance(value, str):
        text = redact_text(value[: 4 * _MAX_TEXT])
        return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "..."
    if depth == _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        items = list(value.items())[:_MAX_ITEMS]
        return {
            str(key): REDACTED
            if not _is_plain(item) and is_secret_name(str(key))
            else _redacted(item, depth + 1)
            for key, item in items
        }
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        plain = value if isinstance(value, Sequence) else sorted(value, key=str)
        return [_redacted(item, depth + 1) for item in plain[:_MAX_ITEMS]]
    return f"[{type(value).__name__}]"
