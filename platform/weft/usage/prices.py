"""What tokens cost: the prices that hold at a moment, and publishing new ones.

Rates are micro-dollars per million tokens, which is picodollars per token, so that amounts are
exact integers. A request costs what its price says that held when it was admitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dialect import db_now_ms
from weft.db.ids import create_id
from weft.errors import InvalidRequestError
from weft.messages import Usage
from weft.usage.money_models import Price, PriceBook
from weft.usage.price_repository import PriceRepository

# ten thousand dollars for a million tokens; what a request costs fits into 64 bits then
MAX_RATE = 10**10


@dataclass(frozen=True, slots=True)
class Rates:
    """Picodollars per token."""

    input: int
    cached_input: int
    output: int

    def amount_pico(self, usage: Usage) -> int:
        """What these tokens cost; the cached ones of the prompt have a price of their own."""
        num_fresh = usage.num_prompt_tokens - usage.num_cached_tokens
        return (
            num_fresh * self.input
            + usage.num_cached_tokens * self.cached_input
            + usage.num_completion_tokens * self.output
        )

    def worst_case_pico(self, num_prompt_tokens: int, max_completion_tokens: int) -> int:
        """The most that a request may cost, whatever is cached."""
        highest = max(self.input, self.cached_input)
        return num_prompt_tokens * highest + max_completion_tokens * self.output


FREE = Rates(0, 0, 0)


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """A price to be published: of a base, for all, for one tenant or for one of its adapters."""

    base_model: str
    rates: Rates
    tenant_id: str | None = None
    adapter_id: str | None = None


async def publish(
    session: AsyncSession, name: str, effective_from: int, terms: Sequence[PriceTerms]
) -> PriceBook:
    """Add a price book that holds from `effective_from` (Unix s) on.

    Prices that others have published stay in force where this one says nothing. InvalidRequestError
    for one that begins in the past: what was admitted since has its price already.
    """
    now = await db_now_ms(session) // 1000
    if effective_from < now:
        raise InvalidRequestError(
            f"A price book cannot begin in the past: {effective_from} is before {now}.",
            param="effective_from",
        )
    _check(terms)
    book = PriceBook(id=create_id("book"), name=name, effective_from=effective_from, created_at=now)
    PriceRepository(session).add(book)
    await session.flush()
    for term in terms:
        PriceRepository(session).add(_price(book, term))
    await session.flush()
    return book


def _check(terms: Sequence[PriceTerms]) -> None:
    if not terms:
        raise InvalidRequestError("A price book needs at least one price.", param="prices")
    seen = set()
    for term in terms:
        whose = (term.base_model, term.tenant_id, term.adapter_id)
        if whose in seen:
            raise InvalidRequestError(
                f"There are two prices for the same: base {term.base_model!r}, tenant "
                f"{term.tenant_id!r}, adapter {term.adapter_id!r}.",
                param="prices",
            )
        seen.add(whose)
        if term.adapter_id is not None and term.tenant_id is None:
            raise InvalidRequestError("An adapter's price names its tenant.", param="prices")
        for rate in (term.rates.input, term.rates.cached_input, term.rates.output):
            if not 0 <= rate <= MAX_RATE:
                raise InvalidRequestError(
                    f"A rate must be between 0 and {MAX_RATE}, not {rate}.", param="prices"
                )


def _price(book: PriceBook, term: PriceTerms) -> Price:
    return Price(
        id=create_id("price"),
        price_book_id=book.id,
        base_model=term.base_model,
        tenant_id=term.tenant_id,
        adapter_id=term.adapter_id,
        input_rate=term.rates.input,
        cached_input_rate=term.rates.cached_input,
        output_rate=term.rates.output,
    )
