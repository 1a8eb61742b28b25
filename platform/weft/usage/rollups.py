"""Adds events up by the hour. An hour is recomputed as a whole, so doing it again changes nothing.

Which hours are due follows from the replicas' numbers: those are committed in order, so up to the
last one that is seen no event can still appear.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.usage.rollup_repository import RollupRepository

HOUR_MS = 3_600_000
# of one replica in one transaction
MAX_EVENTS = 20_000


async def roll_up(database: Database) -> int:
    """Bring the rollups up to the events that are there; returns how many hours were recomputed.

    Two at once do no harm: one of them fails, and its part is done the next time.
    """
    num_hours = 0
    while True:
        num_done = await database.write(_roll_up_some)
        if num_done == 0:
            return num_hours
        num_hours += num_done


async def _roll_up_some(session: AsyncSession) -> int:
    repository = RollupRepository(session)
    spans = await repository.list_due(MAX_EVENTS)
    hours = sorted({hour for span in spans for hour in await repository.list_hours(span, HOUR_MS)})
    for hour in hours:
        await repository.recompute(hour, HOUR_MS)
    for span in spans:
        await repository.move_watermark(span)
    return len(hours)
