"""Adds events up by the minute, minutes by the hour, hours by the day. Whatever is recomputed is
recomputed as a whole, so doing it again changes nothing.

Which minutes are due follows from the replicas' numbers: those are committed in order, so up to the
last one that is seen no event can still appear. Hours and days are rolled up once they are over:
what an hour costs does not grow while it lasts, and no event is read more often than its minute is.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.dialect import db_now_ms
from weft.usage.intervals import join
from weft.usage.rollup_repository import RollupRepository

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
# of one replica in one transaction
MAX_EVENTS = 20_000
# hours or days of one transaction
MAX_SPANS = 24
# events of a request that ended before an hour's end are written by then, nearly always; later ones
# make the hour due again
SETTLING_S = 60
# minutes so near to each other are recomputed with those between them
_MAX_GAP_S = 600


async def roll_up(database: Database) -> int:
    """Bring the rollups up to the events that are there; returns how many spans were recomputed.

    Transactions of `writing`: two of them never recompute the same span at once.
    """
    num_spans = 0
    for work in (_roll_up_minutes, _roll_up_hours, _roll_up_days):
        num_done = 1
        while num_done:
            async with database.writing() as session:
                num_done = await work(session)
            num_spans += num_done
    return num_spans


async def _roll_up_minutes(session: AsyncSession) -> int:
    repository = RollupRepository(session)
    spans = await repository.list_due_events(MAX_EVENTS)
    minutes = {minute for span in spans for minute in await repository.list_minutes(span)}
    for interval in join(minutes, MINUTE_S, _MAX_GAP_S):
        await repository.recompute(MINUTE_S, interval)
    for width_s in (HOUR_S, DAY_S):
        await repository.mark_due(width_s, {minute - minute % width_s for minute in minutes})
    for span in spans:
        await repository.move_watermark(span)
    return len(minutes)


async def _roll_up_hours(session: AsyncSession) -> int:
    return await _roll_up_due(session, HOUR_S, MINUTE_S)


async def _roll_up_days(session: AsyncSession) -> int:
    return await _roll_up_due(session, DAY_S, HOUR_S)


async def _roll_up_due(session: AsyncSession, width_s: int, finer_s: int) -> int:
    repository = RollupRepository(session)
    end_by = await db_now_ms(session) // 1000 - SETTLING_S
    starts = await repository.list_due_spans(width_s, end_by, MAX_SPANS)
    for interval in join(starts, width_s):
        await repository.recompute(width_s, interval, finer_s)
    await repository.unmark_due(width_s, starts)
    return len(starts)
