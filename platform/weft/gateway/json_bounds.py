"""How deep and how full a JSON text is, told before it is parsed. Pure.

A parser makes an object of every value, so that a small text can cost much memory and time: what is
too deep or has too many parts is refused by a scan that makes none.
"""

from __future__ import annotations

import re

MAX_DEPTH = 64
# strings and containers; numbers cost less than the bytes that they are written with
MAX_PARTS = 200_000

# a string always matches, to the end of the text if nothing ends it: no byte is looked at twice
_PART = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_OPENING, _CLOSING = frozenset(b"[{"), frozenset(b"]}")


def find_excess(text: bytes) -> str | None:
    """What a JSON text has too much of, as a sentence; None for one within bounds.

    A text that is no JSON may pass: the parser refuses it.
    """
    if text.count(b'"') + text.count(b"[") + text.count(b"{") < MAX_DEPTH:
        return None
    depth = num_parts = 0
    for match in _PART.finditer(text):
        first = text[match.start()]
        if first in _CLOSING:
            depth -= 1
            continue
        num_parts += 1
        if num_parts > MAX_PARTS:
            return f"The body has more than {MAX_PARTS} strings, lists and objects."
        if first in _OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                return f"The body is nested more than {MAX_DEPTH} deep."
    return None
