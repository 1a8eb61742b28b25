"""Columns and rows of what is exported, whatever file they end up in. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal, TypeAlias

ColumnType = Literal["string", "decimal", "datetime", "json"]
# a datetime is Unix seconds, JSON is its text
Cell: TypeAlias = str | Decimal | int | None


@dataclass(frozen=True, slots=True)
class Column:
    """`is_id`: of few different values that come again and again."""

    name: str
    type: ColumnType = "string"
    is_nullable: bool = False
    is_id: bool = False


@dataclass(frozen=True)
class Table:
    """`rows` is read once; a row has a cell for each column."""

    columns: tuple[Column, ...]
    rows: Iterable[tuple[Cell, ...]]


def utc_text(time_s: int) -> str:
    """As FOCUS has it: `2026-11-01T00:00:00Z`."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
