"""Refuses what xgrammar 0.2.8 would accept and then not hold to, and what could crash it.

xgrammar passes over keywords that it does not know and over some combinations of those it does; a
caller would get answers that do not match. Nesting is bounded because its parser recurses and its
optimizer takes cubic time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

MAX_SCHEMA_CHARS = 100_000
MAX_SCHEMA_DEPTH = 64  # of schemas in schemas
MAX_REGEX_CHARS = 10_000

_ANNOTATIONS = frozenset({
    "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description",
    "discriminator", "example", "examples", "readOnly", "title", "writeOnly",
})  # fmt: skip
_OF_TYPE: dict[str, frozenset[str]] = {
    "object": frozenset({
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames",
        "minProperties", "maxProperties", "unevaluatedProperties",
    }),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"}),
    "string": frozenset({"pattern", "minLength", "maxLength", "format"}),
    "integer": frozenset({
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    }),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}  # fmt: skip
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalProperties", "propertyNames", "unevaluatedProperties",
           "unevaluatedItems")  # fmt: skip
# each of these stands alone: xgrammar does not look at what is beside it
_ALONE = ("$ref", "anyOf", "oneOf", "allOf")
# one character spelled in a pattern: an escape with digits, any other escape, or the plain one
_SPELLED = re.compile(r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\(.)|(.)", re.DOTALL)
_CONTROLS = frozenset('0abfnrtv\\"')  # after a backslash


def check_schema(text: str) -> None:
    """ValueError for a JSON schema whose answers might not match it. `oneOf` is held to as `anyOf`:
    at least one of its schemas matches."""
    if len(text) > MAX_SCHEMA_CHARS:
        raise ValueError(f"The JSON schema is longer than {MAX_SCHEMA_CHARS} characters.")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The JSON schema is not valid JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ValueError("The JSON schema must be an object.")
    level: list[object] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [inner for node in level for inner in _check_node(node)]
        if not level:
            return
    raise ValueError(f"The JSON schema is nested more than {MAX_SCHEMA_DEPTH} deep.")


def _check_node(node: object) -> Iterator[object]:
    """Check one schema; the schemas in it."""
    if not isinstance(node, dict):
        if not isinstance(node, bool):
            raise ValueError("The JSON schema holds something that is no schema where one belongs.")
        return
    allowed = _allowed(node)
    for key, value in node.items():
        if key == "uniqueItems" and value is False:
            continue
        if key not in allowed and key not in _ANNOTATIONS and not key.startswith("x-"):
            raise ValueError(f"The JSON schema has {key!r} where it is not supported.")
        if key in _LISTS or key in _MAPS:
            kind = list if key in _LISTS else dict
            if not isinstance(value, kind):
                raise ValueError(f"The JSON schema's {key!r} is not a {kind.__name__}.")
            yield from value if isinstance(value, list) else value.values()
        elif key == "propertyNames" and isinstance(value, dict):
            yield {"type": "string", **value}
        elif key in _SINGLE:
            yield value
        for pattern in [value] if key == "pattern" else value if key == "patternProperties" else ():
            _check_pattern(str(pattern))
    _check_required(node)


def _check_required(node: dict[str, object]) -> None:
    required, properties = node.get("required", []), node.get("properties", {})
    if isinstance(required, list) and isinstance(properties, dict):
        unknown = next((name for name in required if name not in properties), None)
        if unknown is not None:
            raise ValueError(
                f"The JSON schema requires {unknown!r}, which is not among the 'properties' beside."
            )


def _check_pattern(pattern: str) -> None:
    """What a pattern spells goes into the JSON as it is, where these would end or break the string
    (classes like "." and "[^a]" leave them out by themselves)."""
    check_regex(pattern)
    for spelled in _SPELLED.finditer(pattern):
        two, four, escaped, plain = spelled.groups()
        code = int(two or four, 16) if two or four else ord(plain) if plain else 0x20
        if code < 0x20 or code in (0x22, 0x5C) or (escaped is not None and escaped in _CONTROLS):
            raise ValueError(
                "The JSON schema has a pattern that spells a quote, a backslash or a control "
                f"character: {pattern[:100]!r} is not supported."
            )


def _allowed(node: dict[str, object]) -> set[str]:
    alone = next((key for key in _ALONE if key in node), None)
    if alone is not None:
        value = node[alone]
        if alone == "$ref" and not (isinstance(value, str) and (value + "/").startswith("#/")):
            raise ValueError("The JSON schema has a '$ref' to somewhere outside it.")
        if alone == "allOf" and isinstance(value, list) and len(value) > 1:
            raise ValueError("The JSON schema has an 'allOf' of several schemas: not supported.")
        return {alone}
    if "enum" in node or "const" in node:
        return {"enum" if "enum" in node else "const", "type"}
    types = node.get("type", [])
    names = types if isinstance(types, list) else [types]
    allowed = {"type"}.union(*(_OF_TYPE.get(str(name), frozenset()) for name in names))
    if "number" in names:
        allowed.discard("multipleOf")
    if "pattern" in node or "format" in node:
        allowed -= {"minLength", "maxLength", "format" if "pattern" in node else ""}
    return allowed


def check_regex(text: str) -> str:
    """The expression as xgrammar must see it to mean what Python's `re.fullmatch` means by it: "."
    is any character but a new line. ValueError for anchors that it would ignore."""
    if len(text) > MAX_REGEX_CHARS:
        raise ValueError(f"The regular expression is longer than {MAX_REGEX_CHARS} characters.")
    result, depth, in_class, at = "", 0, False, 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            result += text[at : at + 2]
            at += 2
            continue
        if in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char in "^$":
            beside = text[at - 1 : at] if char == "^" else text[at + 1 : at + 2]
            if depth or beside not in ("", "|"):
                raise ValueError(
                    f"The regular expression has {char!r} at {at}, where it is not supported; "
                    "the whole answer is matched in any case."
                )
        result += r"[^\n]" if char == "." and not in_class else char
        at += 1
    return result
