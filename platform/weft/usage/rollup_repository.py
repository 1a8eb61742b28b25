"""Queries that make rollups out of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import case, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import unscoped
from weft.usage.models import Replica, UsageEvent, UsageRollup

_REASON = "rollups are made for all tenants"
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
class Span:
    """A replica's events after `first_seq` up to `last_seq`."""

    replica_id: str
    first_seq: int
    last_seq: int


class RollupRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def list_due(self, max_events: int) -> Sequence[Span]:
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
        return [Span(*row) for row in await self._session.execute(unscoped(statement, _REASON))]

    async def list_hours(self, span: Span, hour_ms: int) -> Sequence[int]:
        """Unix seconds at which the hours of these events begin."""
        hour = UsageEvent.ended_at_ms // hour_ms
        statement = (
            select(hour)
            .where(
                UsageEvent.replica_id == span.replica_id,
                UsageEvent.replica_seq > span.first_seq,
                UsageEvent.replica_seq <= span.last_seq,
            )
            .distinct()
        )
        found = await self._session.scalars(unscoped(statement, _REASON))
        return [number * hour_ms // 1000 for number in found]

    async def recompute(self, hour_at: int, hour_ms: int) -> None:
        """Replace the rows of an hour."""
        gone = delete(UsageRollup).where(UsageRollup.hour_at == hour_at)
        gone = gone.execution_options(synchronize_session=False)
        await self._session.execute(unscoped(gone, _REASON))
        keys = [getattr(UsageEvent, name) for name in KEYS]
        start_ms = hour_at * 1000
        statement = (
            select(
                *keys,
                func.count(UsageEvent.event_id),
                *(func.sum(getattr(UsageEvent, name)) for name in SUMS),
            )
            .where(UsageEvent.ended_at_ms >= start_ms, UsageEvent.ended_at_ms < start_ms + hour_ms)
            .group_by(*keys)
            .order_by(*keys)
        )
        rows = await self._session.execute(unscoped(statement, _REASON))
        for number, (*values, num_requests, prompt, cached, completion, amount) in enumerate(rows):
            self._session.add(
                UsageRollup(
                    hour_at=hour_at,
                    number=number,
                    **dict(zip(KEYS, values, strict=True)),
                    num_requests=num_requests,
                    prompt_tokens=int(prompt),
                    cached_prompt_tokens=int(cached),
                    completion_tokens=int(completion),
                    amount_pico=int(amount),
                )
            )
        await self._session.flush()

    async def move_watermark(self, span: Span) -> None:
        statement = (
            update(Replica)
            .where(Replica.id == span.replica_id, Replica.rolled_up_seq < span.last_seq)
            .values(rolled_up_seq=span.last_seq)
            .execution_options(synchronize_session=False)
        )
        await self._session.execute(unscoped(statement, _REASON))
