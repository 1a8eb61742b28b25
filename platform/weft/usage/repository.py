"""Queries on usage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.scope import Owner, scoped, unscoped
from weft.usage.models import UsageEvent, UsagePending


@dataclass(frozen=True, slots=True)
class UsageSum:
    """One tenant's events of one model, added up."""

    model: str
    adapter_id: str | None
    adapter_version: int | None
    adapter_digest: str | None
    num_requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int


class UsageRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, *rows: UsageEvent | UsagePending) -> None:
        self._session.add_all(rows)

    async def flush(self) -> None:
        await self._session.flush()

    async def find_pending(self, event_id: str, owner: Owner) -> UsagePending | None:
        statement = select(UsagePending).where(UsagePending.event_id == event_id)
        return await self._session.scalar(scoped(statement, owner))

    async def delete_pending(self, event_ids: Sequence[str], owner: Owner) -> None:
        statement = delete(UsagePending).where(UsagePending.event_id.in_(event_ids))
        await self._session.execute(scoped(statement, owner))

    async def list_all_pending(self) -> Sequence[UsagePending]:
        reason = "at start every pending row was left by a crash, whosever it is"
        return (await self._session.scalars(unscoped(select(UsagePending), reason))).all()

    async def sum_by_model(
        self, owner: Owner, start_ms: int | None, end_ms: int | None
    ) -> Sequence[UsageSum]:
        """Sums over events that ended in [start, end)."""
        event = UsageEvent
        keys = (event.model, event.adapter_id, event.adapter_version, event.adapter_digest)
        statement = select(
            *keys,
            func.count(event.event_id),
            func.sum(event.prompt_tokens),
            func.sum(event.cached_prompt_tokens),
            func.sum(event.completion_tokens),
        )
        if start_ms is not None:
            statement = statement.where(event.ended_at_ms >= start_ms)
        if end_ms is not None:
            statement = statement.where(event.ended_at_ms < end_ms)
        statement = statement.group_by(*keys).order_by(event.model, event.adapter_id)
        rows = await self._session.execute(scoped(statement, owner))
        return [UsageSum(*row) for row in rows]
