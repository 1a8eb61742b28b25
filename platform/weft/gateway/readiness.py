"""Whether requests should come to this process: its engine, its stores, and its own state."""

from __future__ import annotations

import asyncio

from weft.db.database import Database
from weft.db.errors import DatabaseUnavailableError
from weft.gateway.runtime import Gateway

# of each store
_TIMEOUT_S = 1.5


async def find_fault(gateway: Gateway, database: Database) -> str:
    """Why requests should go elsewhere, as a sentence; empty when they are welcome."""
    if gateway.not_ready_reason:
        return gateway.not_ready_reason
    if not await _answers(database):
        return "The database does not answer."
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await gateway.admission.find_fault()
    except TimeoutError:
        return "The limiter does not answer."


async def _answers(database: Database) -> bool:
    """Left alone where it takes too long: ending a statement that hangs takes time itself."""
    ping = asyncio.create_task(database.ping())
    ping.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.wait({ping}, timeout=_TIMEOUT_S)
    if not ping.done():
        ping.cancel()
        return False
    try:
        ping.result()
    except DatabaseUnavailableError:
        return False
    return True
