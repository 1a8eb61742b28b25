"""The operator's price books: published once, never changed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from weft.billing.price_books import list_books, publish_book
from weft.billing.price_schemas import PriceBookCreate, PriceBookObject
from weft.db.dependencies import ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.db.paging import Page
from weft.idempotency.routes import KeyedRoute
from weft.tenancy.acting import actor_of
from weft.tenancy.auth import require_operator
from weft.tenancy.principal import Operator

router = APIRouter(prefix="/admin/v1/price_books", tags=["billing"], route_class=KeyedRoute)
Writer = Annotated[Operator, Depends(require_operator("billing:write"))]


@router.post("", status_code=201)
async def create_price_book(
    operator: Writer, body: PriceBookCreate, session: WriteSession
) -> PriceBookObject:
    """What it says nothing of keeps its price."""
    return await publish_book(session, body, actor_of(operator))


@router.get("", dependencies=[Depends(require_operator("billing:read"))])
async def list_price_books(session: ReadSession) -> ListOf[PriceBookObject]:
    """All, the oldest first."""
    return ListOf[PriceBookObject].of(Page(await list_books(session), False), lambda book: book)
