"""Queries on prices."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import unscoped
from weft.usage.money_models import Price, PriceBook

_REASON = "prices are the operator's; a tenant's own are asked for by its id"


class PriceRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, row: Price | PriceBook) -> None:
        self._session.add(row)

    async def find(self, price_id: str) -> Price | None:
        return await self._session.scalar(
            unscoped(select(Price).where(Price.id == price_id), _REASON)
        )

    async def find_current(
        self, base_model: str, tenant_id: str | None, adapter_id: str | None, at: int
    ) -> Price | None:
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
        return await self._session.scalar(unscoped(statement, _REASON))

    async def list_books(self) -> Sequence[PriceBook]:
        statement = select(PriceBook).order_by(PriceBook.effective_from, PriceBook.id)
        return (await self._session.scalars(unscoped(statement, _REASON))).all()

    async def list_prices(self, book_ids: Sequence[str]) -> Sequence[Price]:
        statement = select(Price).where(Price.price_book_id.in_(book_ids)).order_by(Price.id)
        return (await self._session.scalars(unscoped(statement, _REASON))).all()
