"""The narrowest price that has begun holds; what was published never changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.usage.conftest import Meter

from weft.db.dialect import db_now_ms
from weft.errors import InvalidRequestError
from weft.messages import Usage
from weft.usage.money_models import Price, PriceBook
from weft.usage.price_repository import PriceRepository, current_price
from weft.usage.prices import PriceTerms, Rates, publish

counts = st.integers(0, 10**7)
rates = st.integers(0, 10**10)


@given(counts, counts, counts, rates, rates, rates)
def test_no_request_costs_more_than_its_worst_case(
    num_prompt: int, num_cached: int, num_completion: int, fresh: int, cached: int, output: int
) -> None:
    usage = Usage(num_prompt, num_completion, min(num_cached, num_prompt))
    price = Rates(fresh, cached, output)
    assert 0 <= price.amount_pico(usage) <= price.worst_case_pico(num_prompt, num_completion)


def test_micro_dollars_per_million_tokens_are_picodollars_per_token() -> None:
    # 2.50 dollars for a million prompt tokens, 1.25 for cached ones, 10 for the answer's
    price = Rates(2_500_000, 1_250_000, 10_000_000)
    million = Usage(2_000_000, 1_000_000, 1_000_000)
    assert price.amount_pico(million) == (2_500_000 + 1_250_000 + 10_000_000) * 10**6


async def test_the_narrowest_and_then_the_newest_price_holds(meter: Meter) -> None:
    tenant = meter.tenant_id
    for number, (at, owner, adapter) in enumerate(
        [
            (100, None, None),
            (200, None, None),
            (100, tenant, None),
            (300, tenant, None),
            (100, tenant, "adp"),
            (900, tenant, "adp"),
        ]
    ):
        book = PriceBook(id=f"b{number}", name="n", effective_from=at, created_at=0)
        await meter.add(book)
        await meter.add(
            Price(
                id=f"p{number}", price_book_id=book.id, base_model="tiny", tenant_id=owner,
                adapter_id=adapter, input_rate=1, cached_input_rate=1, output_rate=1,
            )
        )  # fmt: skip

    async def price_at(
        time_s: int, owner: str | None, adapter: str | None, base: str = "tiny"
    ) -> str:
        async with meter.database.reading() as session:
            found = await session.scalar(current_price(base, owner, adapter, time_s))
            return "none" if found is None else found.id

    assert await price_at(99, tenant, "adp") == "none"
    assert await price_at(100, None, None) == "p0"
    assert await price_at(500, None, None) == "p1"
    assert await price_at(500, "another", "adp") == "p1"
    assert await price_at(250, tenant, None) == "p2"
    assert await price_at(500, tenant, "other") == "p3"
    assert await price_at(500, tenant, "adp") == "p4"
    assert await price_at(900, tenant, "adp") == "p5"
    assert await price_at(900, tenant, "adp", "another base") == "none"


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], "at least one price"),
        ([PriceTerms("tiny", Rates(1, 1, -1))], "a rate must be between 0"),
        ([PriceTerms("tiny", Rates(1, 1, 10**10 + 1))], "a rate must be between 0"),
        ([PriceTerms("tiny", Rates(1, 1, 1))] * 2, "two prices for the same"),
        ([PriceTerms("tiny", Rates(1, 1, 1), adapter_id="adp")], "names its tenant"),
    ],
)
async def test_a_book_that_says_nothing_clear_is_refused(
    meter: Meter, terms: list[PriceTerms], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"(?i){message}"):
        async with meter.database.writing() as session:
            await publish(session, "book", 2**40, terms)
    assert await meter.all(PriceBook) == []


async def test_a_book_cannot_begin_in_the_past(meter: Meter) -> None:
    terms = [PriceTerms("tiny", Rates(1, 1, 1))]
    async with meter.database.writing() as session:
        now = await db_now_ms(session) // 1000
        book = await publish(session, "from tomorrow", now + 86_400, terms)
        assert [p.price_book_id for p in await PriceRepository(session).list_prices([book.id])] == [
            book.id
        ]
        with pytest.raises(InvalidRequestError, match="past"):
            await publish(session, "yesterday", now - 86_400, terms)
