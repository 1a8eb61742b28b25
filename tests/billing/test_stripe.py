"""Every token is told to Stripe once, whatever answer is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from tests.billing.books import Books
from tests.billing.stripe_server import KEY, StripeServer, stripe_server

from weft.audit import SYSTEM
from weft.billing import sent_verification
from weft.billing.models import MeterEventRow
from weft.billing.periods import HOUR_S
from weft.billing.sent_verification import check_meter_events
from weft.billing.stripe import StripeClient
from weft.billing.stripe_sender import StripeSender, set_customer
from weft.db.ids import now
from weft.db.scope import unscoped
from weft.errors import ConflictError
from weft.usage.models import UsageEvent
from weft.usage.verification import CheckResult

# the hour before last, which is over for good
HOUR = now() // HOUR_S * HOUR_S - 2 * HOUR_S
INPUT, OUTPUT = "weft_input_tokens", "weft_output_tokens"


@pytest.fixture
def stripe() -> Iterator[StripeServer]:
    with stripe_server() as server:
        yield server


@pytest.fixture
async def sender(sqlite_books: Books, stripe: StripeServer) -> AsyncIterator[StripeSender]:
    client = StripeClient(KEY, stripe.url)
    yield StripeSender(sqlite_books.database, client)
    await client.close()


@pytest.fixture
async def acme(sqlite_books: Books) -> str:
    """A tenant that Stripe knows, with two requests of one hour."""
    tenant_id = await sqlite_books.add_tenant("acme")
    async with sqlite_books.database.writing() as session:
        await set_customer(session, tenant_id, "cus_acme", SYSTEM)
    await sqlite_books.use(tenant_id, HOUR, (100, 30, 7))
    await sqlite_books.use(tenant_id, HOUR + 60, (11, 0, 2))
    return tenant_id


async def rows(books: Books) -> list[MeterEventRow]:
    async with books.database.reading() as session:
        found = await session.scalars(unscoped(select(MeterEventRow), "a test"))
        return list(found)


async def test_an_hour_is_one_event_for_each_meter(
    sqlite_books: Books, sender: StripeSender, stripe: StripeServer, acme: str
) -> None:
    done = await sender.run()
    assert (done.num_sent, done.num_waiting, done.num_stuck) == (3, 0, 0)
    assert set(stripe.events) == {
        f"{acme}:{meter}:{HOUR}:s0" for meter in ("input", "cached_input", "output")
    }
    assert stripe.total(INPUT, "cus_acme") == 81
    assert stripe.total("weft_cached_input_tokens", "cus_acme") == 30
    assert stripe.total(OUTPUT, "cus_acme") == 9
    assert (await sender.run()).num_sent == 0
    assert len(stripe.events) == 3


@pytest.mark.parametrize("fault", ["lost", "429", "500", "503"])
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_what_was_not_answered_is_sent_again_and_counts_once(
    sender: StripeSender, stripe: StripeServer, acme: str, fault: str, place: int
) -> None:
    stripe.faults = [*[""] * place, fault]
    first = await sender.run()
    assert (first.num_sent, first.num_waiting) == (place, 3 - place)
    assert first.problem
    assert (await sender.run()).num_waiting == 0
    assert (stripe.total(INPUT, "cus_acme"), stripe.total(OUTPUT, "cus_acme")) == (81, 9)


async def test_late_usage_is_an_event_more(
    sqlite_books: Books, sender: StripeSender, stripe: StripeServer, acme: str
) -> None:
    await sender.run()
    await sqlite_books.use(acme, HOUR + 5, (1_000, 0, 0))
    assert (await sender.run()).num_sent == 1
    assert f"{acme}:input:{HOUR}:s1" in stripe.events
    assert stripe.total(INPUT, "cus_acme") == 1_081


async def test_an_hour_that_is_not_over_waits(
    sqlite_books: Books, sender: StripeSender, stripe: StripeServer, acme: str
) -> None:
    await sqlite_books.use(acme, now() // HOUR_S * HOUR_S, (5, 0, 0))
    await sender.run()
    assert stripe.total(INPUT, "cus_acme") == 81


async def test_less_usage_than_was_sent_cancels_and_sends_anew(
    sqlite_books: Books, sender: StripeSender, stripe: StripeServer, acme: str
) -> None:
    await sender.run()
    async with sqlite_books.database.writing() as session:
        gone = delete(UsageEvent).where(UsageEvent.completion_tokens == 2)
        await session.execute(unscoped(gone, "a test"))
    await sender.run()
    assert (stripe.total(INPUT, "cus_acme"), stripe.total(OUTPUT, "cus_acme")) == (70, 7)
    assert len(stripe.cancelled) == 2


async def test_what_may_have_arrived_and_been_forgotten_is_left_to_a_person(
    sqlite_books: Books, sender: StripeSender, stripe: StripeServer, acme: str
) -> None:
    stripe.faults = ["lost"]
    await sender.run()
    old = update(MeterEventRow).where(MeterEventRow.state == "sending")
    async with sqlite_books.database.writing() as session:
        await session.execute(unscoped(old.values(sent_at=now() - 30 * HOUR_S), "a test"))
    num_before = len(stripe.events)
    done = await sender.run()
    assert (done.num_sent, done.num_stuck) == (2, 1)
    assert len(stripe.events) == num_before + 2
    assert (await sender.run()).num_sent == 0


async def test_what_stripe_refuses_is_kept_with_its_words(
    sqlite_books: Books, sender: StripeSender, stripe: StripeServer, acme: str
) -> None:
    async with sqlite_books.database.writing() as session:
        await set_customer(session, acme, "nobody", SYSTEM)
    done = await sender.run()
    assert (done.num_sent, done.num_stuck) == (0, 3)
    assert {row.problem for row in await rows(sqlite_books)} == {"No such customer"}
    assert (await sender.run()).num_stuck == 3
    assert stripe.num_requests == 3


async def verified(books: Books) -> CheckResult:
    async with books.database.reading() as session:
        return await check_meter_events(session)


async def test_verification_holds_what_was_sent_against_usage(
    sqlite_books: Books, sender: StripeSender, acme: str
) -> None:
    await sender.run()
    found = await verified(sqlite_books)
    assert (found.differences, found.note[:8]) == ((), "3 events")
    await sqlite_books.use(acme, HOUR + 5, (1_000, 0, 0))
    found = await verified(sqlite_books)
    assert (found.differences, found.note) == (
        (), "3 events, 1 hours of meters are not told yet"
    )  # fmt: skip


ALTERATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "too much": ({"num_tokens": 1_000}, "tokens less than Stripe was told"),
    "another hour": ({"hour_at": HOUR - HOUR_S}, "is not of its tenant, meter and hour"),
    "never sent": ({"sent_at": None}, "was never on its way"),
    "left to a person": ({"state": "unknown", "problem": "old"}, "needs a person, unknown: old"),
}


@pytest.mark.parametrize("what", ALTERATIONS)
async def test_verification_finds_what_was_altered(
    sqlite_books: Books, sender: StripeSender, acme: str, what: str
) -> None:
    values, words = ALTERATIONS[what]
    await sender.run()
    async with sqlite_books.database.writing() as session:
        changed = update(MeterEventRow).where(MeterEventRow.meter == "output").values(**values)
        await session.execute(unscoped(changed, "a test"))
    found = (await verified(sqlite_books)).differences
    assert any(words in sentence for sentence in found), found


async def test_verification_finds_hours_that_are_too_old_to_be_sent(
    sqlite_books: Books, sender: StripeSender, acme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sender.run()
    await sqlite_books.use(acme, HOUR + 5, (1_000, 0, 0))
    monkeypatch.setattr(sent_verification, "LOOKBACK_S", 0)
    assert (await verified(sqlite_books)).differences == (
        f"tenant {acme} has used 1000 input tokens more than Stripe was told of hour {HOUR}",
    )


async def test_a_customer_is_one_tenant(sqlite_books: Books, acme: str) -> None:
    other = await sqlite_books.add_tenant("other")
    async with sqlite_books.database.writing() as session:
        with pytest.raises(ConflictError, match="cus_acme"):
            await set_customer(session, other, "cus_acme", SYSTEM)
