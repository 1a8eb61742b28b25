"""Queries on messages that wait to be delivered."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dialect import database_now_ms, for_update_skip_locked
from weft.db.scope import unscoped
from weft.usage.models import OutboxMessage

_REASON = "messages of all tenants are delivered"


class OutboxRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def claim(self, sink: str, num_rows: int, duration_ms: int) -> Sequence[OutboxMessage]:
        """Messages that are due, the oldest first, and nobody else's for `duration_ms`."""
        message, now_ms = OutboxMessage, database_now_ms()
        statement = (
            select(message)
            .where(
                message.delivered_at_ms.is_(None),
                message.sink == sink,
                message.due_at_ms <= now_ms,
                message.claimed_until_ms <= now_ms,
            )
            .order_by(message.due_at_ms, message.id)
            .limit(num_rows)
        )
        found = await self._session.scalars(unscoped(for_update_skip_locked(statement), _REASON))
        rows = found.all()
        await self._update(sink, [row.id for row in rows], claimed_until_ms=now_ms + duration_ms)
        return rows

    async def mark_delivered(self, sink: str, ids: Sequence[str]) -> None:
        await self._update(sink, ids, delivered_at_ms=database_now_ms(), claimed_until_ms=0)

    async def postpone(self, sink: str, ids: Sequence[str], delay_ms: int) -> None:
        """Try again in `delay_ms`."""
        await self._update(
            sink,
            ids,
            due_at_ms=database_now_ms() + delay_ms,
            claimed_until_ms=0,
            num_attempts=OutboxMessage.num_attempts + 1,
        )

    async def _update(self, sink: str, ids: Sequence[str], **values: object) -> None:
        statement = (
            update(OutboxMessage)
            .where(
                OutboxMessage.sink == sink,
                OutboxMessage.id.in_(ids),
                OutboxMessage.delivered_at_ms.is_(None),
            )
            .values(**values)
            .execution_options(synchronize_session=False)
        )
        await self._session.execute(unscoped(statement, _REASON))

    async def count_undelivered(self) -> dict[str, int]:
        """By sink."""
        statement = (
            select(OutboxMessage.sink, func.count())
            .where(OutboxMessage.delivered_at_ms.is_(None))
            .group_by(OutboxMessage.sink)
        )
        rows = await self._session.execute(unscoped(statement, _REASON))
        return {sink: count for sink, count in rows}

    async def delete_delivered(self, age_ms: int, num_rows: int) -> int:
        """Remove messages that were delivered `age_ms` ago; returns how many."""
        old = (
            select(OutboxMessage.sink, OutboxMessage.id)
            .where(OutboxMessage.delivered_at_ms <= database_now_ms() - age_ms)
            .limit(num_rows)
        )
        keys = [tuple(row) for row in await self._session.execute(unscoped(old, _REASON))]
        gone = (
            delete(OutboxMessage)
            .where(tuple_(OutboxMessage.sink, OutboxMessage.id).in_(keys))
            .execution_options(synchronize_session=False)
        )
        await self._session.execute(unscoped(gone, _REASON))
        return len(keys)
