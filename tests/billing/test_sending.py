"""A server sends usage to Stripe by itself where it is asked to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.billing.books import Books
from tests.billing.stripe_server import KEY, StripeServer, stripe_server

from weft.audit import SYSTEM
from weft.billing import sending as module
from weft.billing.periods import HOUR_S
from weft.billing.sending import sending
from weft.billing.stripe_sender import set_customer
from weft.db.ids import now
from weft.settings import ServerSettings

OUTPUT = "weft_output_tokens"


@pytest.fixture
def stripe() -> Iterator[StripeServer]:
    with stripe_server() as server:
        yield server


@pytest.fixture
async def settings(
    books: Books, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
) -> ServerSettings:
    """With a tenant whom Stripe knows, and usage of an hour that is over."""
    monkeypatch.setattr(module, "INTERVAL_S", 0.02)
    tenant_id = await books.add_tenant("acme")
    async with books.database.writing() as session:
        await set_customer(session, tenant_id, "cus_acme", SYSTEM)
    await books.use(tenant_id, now() // HOUR_S * HOUR_S - 2 * HOUR_S, (100, 30, 7))
    return ServerSettings(
        base_dir=Path("base"), send_to_stripe=True, stripe_url=stripe.url, stripe_api_key=KEY
    )


async def wait_for_tokens(stripe: StripeServer, num_tokens: int) -> None:
    async with asyncio.timeout(10):
        while stripe.total(OUTPUT, "cus_acme") != num_tokens:
            await asyncio.sleep(0.01)


async def test_several_processes_send_each_token_once_and_go_on_after_a_failure(
    books: Books, stripe: StripeServer, settings: ServerSettings
) -> None:
    stripe.faults = ["503", "lost", ""]
    async with sending(settings, books.database), sending(settings, books.database):
        await wait_for_tokens(stripe, 7)
        (tenant_id,) = books.projects
        await books.use(tenant_id, now() // HOUR_S * HOUR_S - 2 * HOUR_S + 9, (5, 0, 4))
        await wait_for_tokens(stripe, 11)
    assert stripe.total("weft_input_tokens", "cus_acme") == 75
    assert len(stripe.events) == 5


async def test_nothing_is_sent_unless_it_is_asked_for(
    books: Books, stripe: StripeServer, settings: ServerSettings
) -> None:
    off = ServerSettings(base_dir=Path("base"), stripe_url=stripe.url, stripe_api_key=KEY)
    async with sending(off, books.database):
        await asyncio.sleep(0.1)
    assert stripe.num_requests == 0


def test_sending_needs_a_key() -> None:
    with pytest.raises(ValueError, match="WEFT_STRIPE_API_KEY"):
        ServerSettings(base_dir=Path("base"), send_to_stripe=True)
