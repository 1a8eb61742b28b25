"""Publishes prices as operators write them: tenants and adapters by name, in the audit trail."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Actor, Target, record
from weft.billing.price_schemas import (
    PriceBody,
    PriceBookCreate,
    PriceBookObject,
    price_book_object,
)
from weft.db.dialect import db_now_ms
from weft.db.scope import TenantOwner
from weft.errors import InvalidRequestError
from weft.registry.service import get_adapter
from weft.tenancy.service import get_tenant
from weft.usage.money_models import Price
from weft.usage.price_repository import PriceRepository
from weft.usage.prices import PriceTerms, publish


async def publish_book(
    session: AsyncSession, body: PriceBookCreate, actor: Actor
) -> PriceBookObject:
    """NotFoundError for a tenant or an adapter that there is not; what `publish` raises."""
    terms = [await _terms(session, price) for price in body.prices]
    effective_from = body.effective_from
    if effective_from is None:
        # the second that has begun is past when the book is checked
        effective_from = await db_now_ms(session) // 1000 + 1
    book = await publish(session, body.name, effective_from, terms)
    changes = {"name": book.name, "effective_from": book.effective_from, "prices": len(terms)}
    await record(session, actor, "price_book.created", Target(book.id), changes)
    prices = await PriceRepository(session).list_prices([book.id])
    return price_book_object(book, list(prices))


async def list_books(session: AsyncSession) -> list[PriceBookObject]:
    """All that were ever published, in the order in which they began to hold."""
    repository = PriceRepository(session)
    books = await repository.list_books()
    by_book: dict[str, list[Price]] = {book.id: [] for book in books}
    for price in await repository.list_prices(list(by_book)):
        by_book[price.price_book_id].append(price)
    return [price_book_object(book, by_book[book.id]) for book in books]


async def _terms(session: AsyncSession, price: PriceBody) -> PriceTerms:
    tenant_id = adapter_id = None
    if price.tenant is not None:
        tenant_id = (await get_tenant(session, price.tenant)).id
    if price.adapter is not None:
        if tenant_id is None:
            raise InvalidRequestError("An adapter's price names its tenant.", param="prices")
        adapter = await get_adapter(session, TenantOwner(tenant_id), price.adapter)
        adapter_id = adapter.id
    return PriceTerms(price.base_model, price.to_rates(), tenant_id, adapter_id)
