"""OpenAI's list object as the model of a response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

from weft.db.paging import Page


class ListItem(BaseModel):
    """What a list's objects have: the id that the next page comes after."""

    id: str


ItemT = TypeVar("ItemT", bound=ListItem)
RowT = TypeVar("RowT")


class ListOf(BaseModel, Generic[ItemT]):
    """A page; `after=last_id` gives the next one."""

    object: Literal["list"] = "list"
    data: Sequence[ItemT]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, page: Page[RowT], item: Callable[[RowT], ItemT]) -> ListOf[ItemT]:
        """The page's rows as objects."""
        data = [item(row) for row in page.rows]
        return cls(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=page.has_more,
        )
