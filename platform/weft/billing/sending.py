"""Sends usage to Stripe in the background of a server.

Each process tries; who holds the lease sends. An hour is due some minutes after its end, so a run
that fails or is cut off is made up for by the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from weft.billing.stripe import API_URL, StripeClient
from weft.billing.stripe_sender import StripeSender
from weft.db.database import Database
from weft.errors import ConflictError
from weft.settings.billing import BillingSettings

INTERVAL_S = 300.0

logger = logging.getLogger("weft.billing")


@asynccontextmanager
async def sending(settings: BillingSettings, database: Database) -> AsyncIterator[None]:
    """At work while the context is open, where the settings ask for it."""
    if not settings.send_to_stripe:
        yield
        return
    assert settings.stripe_api_key is not None, "the settings have checked it"
    client = StripeClient(settings.stripe_api_key, settings.stripe_url or API_URL)
    task = asyncio.create_task(_repeat(StripeSender(database, client)), name="weft-stripe")
    try:
        yield
    finally:
        # whatever is on its way was marked before, and is sent again with its identifier
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


async def _repeat(sender: StripeSender) -> None:
    while True:
        try:
            await _run(sender)
        except Exception:
            logger.exception("sending usage to Stripe failed; it is tried again")
        await asyncio.sleep(INTERVAL_S)


async def _run(sender: StripeSender) -> None:
    try:
        done = await sender.run()
    except ConflictError:
        return  # another process sends
    if done.num_sent:
        logger.info("%d meter events were sent to Stripe", done.num_sent)
    if done.problem:
        logger.warning("%d meter events wait for Stripe: %s", done.num_waiting, done.problem)
    if done.num_stuck:
        logger.error("%d meter events need a person: weft billing verify", done.num_stuck)
