"""Addresses and names of people: one spelling each, and none that does harm where it is shown."""

from __future__ import annotations

import re
import unicodedata

from weft.errors import InvalidRequestError

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# begins with a letter or digit: a spreadsheet would read "=..." as a formula
_LOCAL = re.compile(r"[a-z0-9][a-z0-9.!#$%&'*+/=?^_`{|}~-]{0,63}")
_FORMULA_STARTS = ("=", "+", "-", "@")
MAX_EMAIL_CHARS = 254


def normalise_email(text: str) -> str:
    """`text` in lower case; InvalidRequestError where it is no address.

    Hosts that tell capitals apart in the local part are all but extinct, and two accounts that
    differ in capitals only would be a way to pass for someone else.
    """
    email = text.strip().lower()
    local, _, domain = email.rpartition("@")
    if len(email) > MAX_EMAIL_CHARS or not _LOCAL.fullmatch(local) or not is_domain(domain):
        raise InvalidRequestError("This is no e-mail address of ASCII characters.", param="email")
    return email


def is_domain(text: str) -> bool:
    """A host name in lower case, internationalised ones in their ASCII form (`xn--`)."""
    return len(text) <= 253 and _DOMAIN.fullmatch(text) is not None


def domain_of(email: str) -> str:
    return email.rpartition("@")[2]


def check_person_name(name: str) -> str:
    """`name` in NFC; InvalidRequestError where it would not stay in its place in a list or log."""
    name = unicodedata.normalize("NFC", name).strip()
    # control, format (direction marks among them), private use, surrogates, line separators
    has_bad_char = any(unicodedata.category(char)[0] in "C" for char in name) or (
        "\u2028" in name or "\u2029" in name
    )
    if len(name) > 128 or has_bad_char or name.startswith(_FORMULA_STARTS):
        raise InvalidRequestError(
            "A name is at most 128 characters without control characters, and does not begin with "
            "'=', '+', '-' or '@'.",
            param="name",
        )
    return name
