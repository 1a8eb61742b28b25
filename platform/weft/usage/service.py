"""Records usage so that every request that reached the engine is one event, also after a crash.

Counts come from the engine's `Usage`; nothing is counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weft.db.database import Database
from weft.db.ids import create_id, now_ms
from weft.db.scope import TenantOwner
from weft.messages import Usage
from weft.usage.models import EVENT_SCHEMA_VERSION, Outcome, Replica, UsageEvent, UsagePending
from weft.usage.repository import UsageRepository


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
    """`start` once, `begin` before the engine, then exactly one of `finish` and `forget`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.replica_id = create_id("replica")

    async def start(self) -> int:
        """Take a place among the replicas. What those before left becomes `lost`, billed nothing;
        returns how many."""
        at_ms = now_ms()
        async with self._database.writing() as session:
            repository = UsageRepository(session)
            await repository.close_replicas(at_ms)
            left = await repository.list_all_pending()
            for pending in left:
                await self._record(repository, pending, Usage(0, 0), None, "lost")
            repository.add(_replica(self.replica_id, at_ms))
        return len(left)

    async def begin(self, requests: Sequence[MeteredRequest]) -> None:
        """Write-ahead: the rows are durable when this returns. All or none."""
        started_at_ms = now_ms()
        async with self._database.writing() as session:
            UsageRepository(session).add(
                *(
                    UsagePending(
                        **_columns(req),
                        started_at_ms=started_at_ms,
                        replica_id=self.replica_id,
                        hold_pico=0,
                        budget_holds=[],
                    )
                    for req in requests
                )
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
        async with self._database.writing() as session:
            repository = UsageRepository(session)
            pending = await repository.find_pending(req.event_id, TenantOwner(req.tenant_id))
            if pending is not None:
                await self._record(repository, pending, usage, finish_reason, outcome)

    async def _record(
        self,
        repository: UsageRepository,
        pending: UsagePending,
        usage: Usage,
        finish_reason: str | None,
        outcome: Outcome,
    ) -> None:
        await repository.delete_pending([pending.event_id], TenantOwner(pending.tenant_id))
        replica_seq = await repository.take_seq(pending.replica_id)
        repository.add(_event(pending, usage, finish_reason, outcome, replica_seq))


def _columns(req: MeteredRequest) -> dict[str, object]:
    return {name: getattr(req, name) for name in MeteredRequest.__slots__}


def _replica(replica_id: str, at_ms: int) -> Replica:
    return Replica(
        id=replica_id,
        kind="server",
        started_at_ms=at_ms,
        heartbeat_at_ms=at_ms,
        last_seq=0,
        rolled_up_seq=0,
        prompt_tokens=0,
        completion_tokens=0,
    )


def _event(
    pending: UsagePending,
    usage: Usage,
    finish_reason: str | None,
    outcome: Outcome,
    replica_seq: int,
) -> UsageEvent:
    admitted = {name: getattr(pending, name) for name in MeteredRequest.__slots__}
    ended_at_ms = now_ms()
    return UsageEvent(
        **admitted,
        replica_id=pending.replica_id,
        engine_id=pending.engine_id,
        price_id=pending.price_id,
        started_at_ms=pending.started_at_ms,
        ended_at_ms=ended_at_ms,
        recorded_at_ms=ended_at_ms,
        prompt_tokens=usage.num_prompt_tokens,
        cached_prompt_tokens=usage.num_cached_tokens,
        completion_tokens=usage.num_completion_tokens,
        finish_reason=finish_reason,
        outcome=outcome,
        amount_pico=0,
        replica_seq=replica_seq,
        schema_version=EVENT_SCHEMA_VERSION,
    )
