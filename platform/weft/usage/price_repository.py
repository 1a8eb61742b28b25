"""Queries on prices."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, bindparam, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dialect import database_now_ms
from weft.db.prepared import Prepared, Row
from weft.db.scope import unscoped
from weft.db.transactions import Answers, Transaction, fetch
from weft.usage.money_models import Price, PriceBook

_REASON = "prices are the operator's; a tenant's own are asked for by its id"
_Name = str | None | ColumnElement[str]


def current_price(
    base_model: _Name, tenant_id: _Name, adapter_id: _Name, at: int | ColumnElement[int]
) -> Select[Price]:
    """The price that holds at `at` (Unix s): the narrowest, and of those the newest.

    Without tenant and adapter, the list price.
    """
    statement = (
        select(Price)
        .join(PriceBook, Price.price_book_id == PriceBook.id)
        .where(
            Price.base_model == base_model,
            PriceBook.effective_from <= at,
            or_(Price.tenant_id.is_(None), Price.tenant_id == tenant_id),
            or_(Price.adapter_id.is_(None), Price.adapter_id == adapter_id),
        )
        .order_by(
            Price.adapter_id.is_(None),
            Price.tenant_id.is_(None),
            PriceBook.effective_from.desc(),
            PriceBook.id.desc(),
        )
        .limit(1)
    )
    return unscoped(statement, _REASON)


_COLUMNS = (Price.id, Price.input_rate, Price.cached_input_rate, Price.output_rate)
_CURRENT = Prepared(
    current_price(
        bindparam("base_model"),
        bindparam("tenant_id"),
        bindparam("adapter_id"),
        database_now_ms() // 1000,
    ).with_only_columns(*_COLUMNS)
)
_BY_ID = Prepared(unscoped(select(*_COLUMNS).where(Price.id == bindparam("price_id")), _REASON))


async def ask_current(tx: Transaction, requests: Sequence[tuple[str, str, str | None]]) -> Answers:
    """(id, rates of input, cached input and output) that hold now for each (base, tenant, adapter);
    no row where nothing does."""
    names = ("base_model", "tenant_id", "adapter_id")
    return await tx.ask(_CURRENT, [dict(zip(names, request, strict=True)) for request in requests])


async def find_all(tx: Transaction, price_ids: Sequence[str]) -> list[Row]:
    """(id, rates of input, cached input and output) of each."""
    found = await fetch(tx, _BY_ID, [{"price_id": price_id} for price_id in price_ids])
    return [row for rows in found for row in rows]


class PriceRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, row: Price | PriceBook) -> None:
        self._session.add(row)

    async def list_books(self) -> Sequence[PriceBook]:
        statement = select(PriceBook).order_by(PriceBook.effective_from, PriceBook.id)
        return (await self._session.scalars(unscoped(statement, _REASON))).all()

    async def list_prices(self, book_ids: Sequence[str]) -> Sequence[Price]:
        statement = select(Price).where(Price.price_book_id.in_(book_ids)).order_by(Price.id)
        return (await self._session.scalars(unscoped(statement, _REASON))).all()
