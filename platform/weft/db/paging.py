"""Cursor pages over rows with time-ordered ids, in the shape of OpenAI's lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute

RowT = TypeVar("RowT")
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """`after` is the id of the last row of the page before, already looked up by the caller."""

    limit: int = 20
    after: str | None = None
    order: Literal["asc", "desc"] = "desc"

    def apply(self, statement: Select[RowT], key: InstrumentedAttribute[Any]) -> Select[RowT]:
        """`statement` for this page, with one row more that tells whether there are others."""
        if self.after is not None:
            statement = statement.where(
                key < self.after if self.order == "desc" else key > self.after
            )
        return statement.order_by(key.desc() if self.order == "desc" else key).limit(self.limit + 1)


@dataclass(frozen=True, slots=True)
class Page(Generic[RowT]):
    """Rows of one page."""

    rows: Sequence[RowT]
    has_more: bool

    @classmethod
    def of(cls, rows: Sequence[RowT], request: PageRequest) -> Page[RowT]:
        return cls(rows[: request.limit], len(rows) > request.limit)

    def to_wire(self, item: Callable[[RowT], dict[str, object]]) -> dict[str, object]:
        """OpenAI's list object."""
        data = [item(row) for row in self.rows]
        ids = [entry.get("id") for entry in data]
        return {
            "object": "list",
            "data": data,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "has_more": self.has_more,
        }
