"""Whether requests should come to this process: its engine, its stores, and its own state."""

from __future__ import annotations

import asyncio

from sqlalchemy import text

from weft.db.database import Database
from weft.db.errors import DatabaseUnavailableError
from weft.db.scope import unscoped
from weft.gateway.runtime import Gateway

# of each store
_TIMEOUT_S = 1.5


async def find_fault(gateway: Gateway, database: Database) -> str:
    """Why requests should go elsewhere, as a sentence; empty when they are welcome."""
    if gateway.not_ready_reason:
        return gateway.not_ready_reason
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            async with database.reading() as session:
                asked = unscoped(text("SELECT 1"), "asks whether the database answers")
                await session.execute(asked)
    except (DatabaseUnavailableError, TimeoutError):
        return "The database does not answer."
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await gateway.admission.find_fault()
    except TimeoutError:
        return "The limiter does not answer."
