"""Queries that make rollups out of events, and of finer rollups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, case, delete, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from weft.db.dialect import insert_into, insert_or_ignore
from weft.db.scope import unscoped
from weft.usage.intervals import Interval
from weft.usage.models import DueRollup, Replica, UsageEvent, UsageRollup

_REASON = "rollups are made for all tenants"
_MINUTE_S, _MINUTE_MS = 60, 60_000
# what the events of a row have in common
KEYS = (
    "tenant_id",
    "project_id",
    "api_key_id",
    "model",
    "base_model",
    "adapter_id",
    "adapter_version",
    "adapter_digest",
    "price_id",
)
SUMS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "amount_pico")


@dataclass(frozen=True, slots=True)
class EventSpan:
    """A replica's events after `first_seq` up to `last_seq`."""

    replica_id: str
    first_seq: int
    last_seq: int


class RollupRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def list_due_events(self, max_events: int) -> Sequence[EventSpan]:
        """What is not in the rollups yet, at most `max_events` of each replica."""
        end = Replica.rolled_up_seq + max_events
        statement = (
            select(
                Replica.id,
                Replica.rolled_up_seq,
                case((Replica.last_seq < end, Replica.last_seq), else_=end),
            )
            .where(Replica.last_seq > Replica.rolled_up_seq)
            .order_by(Replica.id)
        )
        rows = await self._session.execute(unscoped(statement, _REASON))
        return [EventSpan(*row) for row in rows]

    async def list_minutes(self, span: EventSpan) -> Sequence[int]:
        """Unix seconds at which the minutes of these events begin."""
        minute = UsageEvent.ended_at_ms // _MINUTE_MS
        statement = (
            select(minute)
            .where(
                UsageEvent.replica_id == span.replica_id,
                UsageEvent.replica_seq > span.first_seq,
                UsageEvent.replica_seq <= span.last_seq,
            )
            .distinct()
        )
        found = await self._session.scalars(unscoped(statement, _REASON))
        return [number * _MINUTE_S for number in found]

    async def recompute(self, width_s: int, interval: Interval, finer_s: int | None = None) -> None:
        """Replace the rows of `width_s` in the interval by sums of those of `finer_s`, or, minutes,
        of events. Both are in the database: no row passes through here."""
        gone = delete(UsageRollup).where(
            UsageRollup.width_s == width_s,
            UsageRollup.start_at >= interval.start_at,
            UsageRollup.start_at < interval.end_at,
        )
        gone = gone.execution_options(synchronize_session=False)
        await self._session.execute(unscoped(gone, _REASON))
        sums = (
            _sum_events(interval) if finer_s is None else _sum_rollups(width_s, finer_s, interval)
        ).subquery()
        number = func.row_number().over(partition_by=(sums.c.tenant_id, sums.c.start_at))
        rows = select(literal(width_s), number, *sums.c)
        names = ("width_s", "number", *sums.c.keys())
        statement = insert_into(self._session, UsageRollup).from_select(
            names, unscoped(rows, _REASON)
        )
        await self._session.execute(statement)

    async def mark_due(self, width_s: int, starts: Collection[int]) -> None:
        rows = [{"width_s": width_s, "start_at": start_at} for start_at in sorted(starts)]
        await insert_or_ignore(self._session, DueRollup, rows)

    async def list_due_spans(self, width_s: int, end_by: int, max_rows: int) -> Sequence[int]:
        """Where spans begin that were over at `end_by` and have nothing finer that is due."""
        finer = aliased(DueRollup)
        has_finer = (
            select(finer.start_at)
            .where(
                finer.width_s < width_s,
                finer.start_at >= DueRollup.start_at,
                finer.start_at < DueRollup.start_at + width_s,
            )
            .exists()
        )
        statement = (
            select(DueRollup.start_at)
            .where(DueRollup.width_s == width_s, DueRollup.start_at <= end_by - width_s, ~has_finer)
            .order_by(DueRollup.start_at)
            .limit(max_rows)
        )
        return (await self._session.scalars(unscoped(statement, _REASON))).all()

    async def unmark_due(self, width_s: int, starts: Collection[int]) -> None:
        statement = (
            delete(DueRollup)
            .where(DueRollup.width_s == width_s, DueRollup.start_at.in_(starts))
            .execution_options(synchronize_session=False)
        )
        await self._session.execute(unscoped(statement, _REASON))

    async def move_watermark(self, span: EventSpan) -> None:
        statement = (
            update(Replica)
            .where(Replica.id == span.replica_id, Replica.rolled_up_seq < span.last_seq)
            .values(rolled_up_seq=span.last_seq)
            .execution_options(synchronize_session=False)
        )
        await self._session.execute(unscoped(statement, _REASON))


def _sum_events(interval: Interval) -> Select[Any]:
    """By minute."""
    ended_at_ms = UsageEvent.ended_at_ms
    start_at = ended_at_ms // _MINUTE_MS * _MINUTE_S
    keys = [getattr(UsageEvent, name) for name in KEYS]
    statement = select(
        *keys,
        start_at.label("start_at"),
        func.count().label("num_requests"),
        *(func.sum(getattr(UsageEvent, name)).label(name) for name in SUMS),
    ).where(ended_at_ms >= interval.start_at * 1000, ended_at_ms < interval.end_at * 1000)
    return unscoped(statement.group_by(*keys, start_at), _REASON)


def _sum_rollups(width_s: int, finer_s: int, interval: Interval) -> Select[Any]:
    row = UsageRollup
    start_at = row.start_at - row.start_at % width_s
    keys = [getattr(row, name) for name in KEYS]
    statement = select(
        *keys,
        start_at.label("start_at"),
        *(func.sum(getattr(row, name)).label(name) for name in ("num_requests", *SUMS)),
    ).where(
        row.width_s == finer_s,
        row.start_at >= interval.start_at,
        row.start_at < interval.end_at,
    )
    return unscoped(statement.group_by(*keys, start_at), _REASON)
