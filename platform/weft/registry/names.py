"""How a model is named in a request: `<base>`, `<adapter>`, `<adapter>@<alias>`, `<adapter>@v<N>`.

Pure text; knows no tenant and no table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_ALIAS = "default"
# the adapter whose versions are merged ones; no request can name it
MERGED_NAME = "~merged"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class ModelName:
    """An adapter with either a version number or an alias."""

    adapter: str
    alias: str | None = DEFAULT_ALIAS
    number: int | None = None


def is_adapter_name(text: str) -> bool:
    """Lower case, no slash, no two dots in a row."""
    return _NAME.fullmatch(text) is not None and ".." not in text


def is_alias_name(text: str) -> bool:
    """As an adapter's name, but nothing that reads as a version."""
    return is_adapter_name(text) and _VERSION.fullmatch(text) is None


def try_parse_model_name(text: str) -> ModelName | None:
    """None where `text` cannot name an adapter."""
    adapter, at, pointer = text.partition("@")
    if not is_adapter_name(adapter):
        return None
    if not at:
        return ModelName(adapter)
    version = _VERSION.fullmatch(pointer)
    if version is not None:
        return ModelName(adapter, alias=None, number=int(version[1]))
    return ModelName(adapter, alias=pointer) if is_adapter_name(pointer) else None
