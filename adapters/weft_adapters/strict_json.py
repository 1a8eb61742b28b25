"""JSON as a hostile stranger may write it, read strictly.

Knows nothing of adapters. Refused with a ValueError that is a sentence: text that is not UTF-8,
duplicate keys, NaN and Infinity, numbers that do not fit a float, nesting, lone surrogates, more
values than memory should be spent on.
"""

from __future__ import annotations

import json
import math
from typing import NoReturn

from weft_adapters.faults import shown

# an empty list takes 3 bytes of text and 70 of memory, a key of an object 200
MAX_VALUES = 50_000


def parse_strict(data: bytes, *, max_depth: int) -> object:
    """The value of a JSON document whose arrays and objects nest at most `max_depth` deep.

    Raises ValueError. The caller bounds `len(data)`.
    """
    # every value but the first follows one of these; inside of strings they are counted in vain
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError(f"It has more than {MAX_VALUES} values.")
    try:
        value: object = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("It is not UTF-8 text.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"It is not valid JSON ({error.msg} at byte {error.pos}).") from None
    except RecursionError:
        raise ValueError(f"It is nested deeper than {max_depth} levels.") from None
    _check_depth_and_text(value, max_depth)
    return value


def _object_of_unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"The key {shown(key)} appears twice.")
            seen.add(key)
    return found


def _refuse_constant(literal: str) -> NoReturn:
    raise ValueError(f"It contains {literal}, which is not a JSON number.")


def _short_int(literal: str) -> int:
    if len(literal) > 1000:
        raise ValueError(f"The number {literal[:40]}... is too large.")
    return int(literal)


def _finite_float(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"The number {literal[:40]} is too large.")
    return number


def _check_depth_and_text(value: object, max_depth: int) -> None:
    level: list[object] = [value]
    for _ in range(max_depth + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, dict):
                inner.extend(item.keys())
                inner.extend(item.values())
        if not inner:
            return
        level = inner
    if any(isinstance(item, list | dict) for item in level):
        raise ValueError(f"It is nested deeper than {max_depth} levels.")
    for item in level:
        if isinstance(item, str):
            _check_text(item)


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("It contains half of a surrogate pair, which is not text.") from None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_of_unique_keys,
    parse_constant=_refuse_constant,
    parse_float=_finite_float,
    parse_int=_short_int,
)
