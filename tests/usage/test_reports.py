"""Reports are exact to the last event, whatever part of the usage is rolled up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from tests.billing.books import AUGUST, INPUT_RATE, Books

from weft.db.database import Database
from weft.db.scope import TenantOwner, unscoped
from weft.errors import InvalidRequestError
from weft.usage import rollups
from weft.usage.models import DueRollup, Replica, UsageRollup
from weft.usage.report_repository import ReportFilter, ReportRepository, Totals
from weft.usage.reports import Span, check_limit, create_span
from weft.usage.rollups import roll_up

HOUR_S, DAY_S = 3600, 86_400
ALL = ReportFilter()


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Books]:
    database = Database(database_url)
    found = Books(database)
    await found.open()
    yield found
    await database.close()


async def sum_up(books: Books, tenant: str, width_s: int, wanted: ReportFilter = ALL) -> Totals:
    span = Span(AUGUST.start_at, AUGUST.start_at + 2 * DAY_S, width_s, None)
    async with books.database.reading() as session:
        return await ReportRepository(session).sum_up(
            TenantOwner(tenant), span, ["api_key_id"], wanted
        )


async def roll_up_first_hour(books: Books, tenant: str, seq: int, prompt_tokens: int) -> None:
    """As a rollup of the events up to `seq` would have it; the day is due."""
    async with books.database.writing() as session:
        session.add(DueRollup(width_s=DAY_S, start_at=AUGUST.start_at))
        session.add(
            UsageRollup(
                tenant_id=tenant, width_s=HOUR_S, start_at=AUGUST.start_at, number=1,
                project_id="p", api_key_id="key1", model="bot@v3", base_model="tiny",
                adapter_id=None, adapter_version=None, adapter_digest=None, price_id="price_1",
                num_requests=1, prompt_tokens=prompt_tokens, cached_prompt_tokens=0,
                completion_tokens=0, amount_pico=0,
            )
        )  # fmt: skip
        await session.execute(
            unscoped(update(Replica).values(rolled_up_seq=seq, last_seq=99), "a test")
        )


async def test_newer_events_of_an_hour_replace_its_rollup(books: Books) -> None:
    acme, other = await books.add_tenant("acme"), await books.add_tenant("other")
    await books.use(acme, AUGUST.start_at, (1, 0, 0))
    await roll_up_first_hour(books, acme, 1, prompt_tokens=1_000_000)
    key = (AUGUST.start_at, ("key1",))
    assert (await sum_up(books, acme, HOUR_S))[key].prompt_tokens == 1_000_000
    await books.use(acme, AUGUST.start_at + HOUR_S, (3, 0, 0))
    await books.use(other, AUGUST.start_at, (7, 0, 0))
    found = await sum_up(books, acme, DAY_S)
    assert found[key].prompt_tokens == 1_000_003
    assert set(await sum_up(books, acme, HOUR_S)) == {key, (AUGUST.start_at + HOUR_S, ("key1",))}
    await books.use(acme, AUGUST.start_at + 5, (10, 0, 0))
    found = await sum_up(books, acme, DAY_S)
    assert (found[key].prompt_tokens, found[key].num_requests) == (14, 3)


async def test_minutes_come_from_events_and_filters_hold(books: Books) -> None:
    acme = await books.add_tenant("acme")
    await books.use(acme, AUGUST.start_at + 59, (1, 1, 2))
    await books.use(acme, AUGUST.start_at + 60, (4, 0, 0), key="key2")
    minute = (AUGUST.start_at + 60, ("key2",))
    found = await sum_up(books, acme, 60)
    assert found[minute].amount_pico == 4 * INPUT_RATE
    assert found[AUGUST.start_at, ("key1",)].cached_prompt_tokens == 1
    only = await sum_up(books, acme, 60, ReportFilter(api_key_ids=["key2"]))
    assert list(only) == [minute]
    assert await sum_up(books, acme, 60, ReportFilter(project_ids=[])) == {}


async def say_last_seq(books: Books, seq: int) -> None:
    async with books.database.writing() as session:
        await session.execute(unscoped(update(Replica).values(last_seq=seq), "a test"))


async def test_a_span_that_cuts_hours_is_exact_at_both_ends(books: Books) -> None:
    acme = await books.add_tenant("acme")
    # most in hours that have others as well
    at = sorted(Random(7).sample([*range(6 * HOUR_S), *range(0, 3 * DAY_S, 60)], 40))
    for number, second in enumerate(at):
        await books.use(acme, AUGUST.start_at + second, (2**number, 0, 0))
        if number == 10:
            await say_last_seq(books, number + 1)
            assert await roll_up(books.database) > 2
        if number == 25:  # hours and days are due again
            await say_last_seq(books, number + 1)
            async with books.database.writing() as session:
                assert await rollups._roll_up_minutes(session) > 2
    await say_last_seq(books, len(at))
    spans = [(0, 6 * HOUR_S), (0, DAY_S), (DAY_S, 3 * DAY_S), (7, 2 * DAY_S + 7)]
    spans += [(100, 200), (HOUR_S, 2 * HOUR_S), (at[3], at[3] + 1)]
    spans += [(at[5], at[20]), (at[20], at[39]), (3 * HOUR_S - 1, 5 * HOUR_S + 1)]
    for first, last in [*spans, (None, at[10]), (at[10], None), (None, None)]:
        async with books.database.reading() as session:
            found = await ReportRepository(session).sum_up_between(
                TenantOwner(acme),
                None if first is None else AUGUST.start_at + first,
                None if last is None else AUGUST.start_at + last,
                ["api_key_id"],
            )
        wanted = sum(
            2**number
            for number, second in enumerate(at)
            if (first is None or first <= second) and (last is None or second < last)
        )
        assert sum(total.prompt_tokens for total in found.values()) == wanted


@given(
    st.integers(0, 2**33), st.integers(1, 100 * DAY_S),
    st.sampled_from([60, HOUR_S, DAY_S]), st.integers(1, 40),
)  # fmt: skip
def test_pages_cover_the_time_once_in_whole_buckets(
    start_at: int, length_s: int, width_s: int, limit: int
) -> None:
    end_at, page, pages = start_at + length_s, None, 0
    expected = start_at - start_at % width_s
    while True:
        span = create_span(start_at, end_at, width_s, limit, page)
        assert span.start_at == expected
        assert len(list(span.bucket_starts)) <= limit
        expected, page, pages = span.end_at, span.next_page, pages + 1
        if page is None or pages == 5:
            break
    if page is None:
        assert end_at <= expected < end_at + width_s


@pytest.mark.parametrize("page", ["page_", "page_x", "page_90", "3600", "page_7200", "page_-60"])
def test_a_page_that_no_answer_named_is_refused(page: str) -> None:
    with pytest.raises(InvalidRequestError, match="page"):
        create_span(0, 7200, 60, 10, page)


def test_an_end_before_the_start_and_too_many_buckets_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="after start_time"):
        create_span(5, 5, 60, 10, None)
    with pytest.raises(InvalidRequestError, match="between 1 and 31"):
        check_limit(32, 7, 31)
    assert check_limit(None, 7, 31) == 7
