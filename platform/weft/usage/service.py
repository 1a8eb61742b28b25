"""Records usage so that every request that reached the engine is one event, also after a crash.

Counts come from the engine's `Usage`; nothing is counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from weft.db.database import Database
from weft.db.ids import now_ms
from weft.db.scope import TenantOwner
from weft.messages import Usage
from weft.usage.models import UsageEvent, UsagePending
from weft.usage.repository import UsageRepository

Outcome = Literal["ok", "cancelled", "error", "lost"]


@dataclass(frozen=True, slots=True)
class MeteredRequest:
    """One engine request as usage sees it."""

    event_id: str
    tenant_id: str
    project_id: str
    api_key_id: str
    model: str
    base_model: str
    adapter_id: str | None = None
    adapter_version: int | None = None
    adapter_digest: str | None = None


class UsageRecorder:
    """`begin` before the engine, then exactly one of `finish` and `forget`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, requests: Sequence[MeteredRequest]) -> None:
        """Write-ahead: the rows are durable when this returns. All or none."""
        started_at_ms = now_ms()
        async with self._database.writing() as session:
            UsageRepository(session).add(
                *(UsagePending(**_columns(req), started_at_ms=started_at_ms) for req in requests)
            )

    async def forget(self, requests: Sequence[MeteredRequest]) -> None:
        """The engine never took these."""
        if not requests:
            return
        async with self._database.writing() as session:
            await UsageRepository(session).delete_pending(
                [req.event_id for req in requests], TenantOwner(requests[0].tenant_id)
            )

    async def finish(
        self, req: MeteredRequest, usage: Usage, finish_reason: str | None, outcome: Outcome
    ) -> None:
        """One transaction: the event in, the pending row out. Repeating it changes nothing."""
        owner = TenantOwner(req.tenant_id)
        async with self._database.writing() as session:
            repository = UsageRepository(session)
            pending = await repository.find_pending(req.event_id, owner)
            if pending is None:
                return
            repository.add(_event(pending, usage, finish_reason, outcome))
            await repository.delete_pending([req.event_id], owner)

    async def recover(self) -> int:
        """At start: what a crash left becomes `lost`, billed nothing. Returns how many."""
        async with self._database.writing() as session:
            repository = UsageRepository(session)
            left = await repository.list_all_pending()
            for pending in left:
                repository.add(_event(pending, Usage(0, 0), None, "lost"))
                await repository.delete_pending([pending.event_id], TenantOwner(pending.tenant_id))
            return len(left)


def _columns(req: MeteredRequest) -> dict[str, object]:
    return {name: getattr(req, name) for name in MeteredRequest.__slots__}


def _event(
    pending: UsagePending, usage: Usage, finish_reason: str | None, outcome: Outcome
) -> UsageEvent:
    admitted = {name: getattr(pending, name) for name in MeteredRequest.__slots__}
    return UsageEvent(
        **admitted,
        started_at_ms=pending.started_at_ms,
        ended_at_ms=now_ms(),
        prompt_tokens=usage.num_prompt_tokens,
        cached_prompt_tokens=usage.num_cached_tokens,
        completion_tokens=usage.num_completion_tokens,
        finish_reason=finish_reason,
        outcome=outcome,
    )
