"""Records usage so that every request that reached the engine is one event, also after a crash.

Counts come from the engine's `Usage`; nothing is counted here. An event, what it costs in the
ledger and in budgets, and the messages about it are written in one transaction or not at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.dialect import db_now_ms
from weft.db.ids import create_id
from weft.db.scope import TenantOwner
from weft.limits import budgets
from weft.limits.subjects import RequestSubjects
from weft.messages import Usage
from weft.usage import ledger
from weft.usage.models import Outcome, UsagePending
from weft.usage.price_repository import PriceRepository
from weft.usage.prices import Rates
from weft.usage.replicas import Replicas
from weft.usage.repository import UsageRepository
from weft.usage.settling import Settler

logger = logging.getLogger("weft.usage")


@dataclass(frozen=True, slots=True)
class MeteredRequest:
    """One engine request as usage sees it.

    It has `num_prompt_tokens` and makes at most `max_completion_tokens`, over all its choices.
    """

    event_id: str
    tenant_id: str
    project_id: str
    api_key_id: str
    model: str
    base_model: str
    adapter_id: str | None = None
    adapter_version: int | None = None
    adapter_digest: str | None = None
    num_prompt_tokens: int = 0
    max_completion_tokens: int = 0

    @property
    def subjects(self) -> RequestSubjects:
        """Whose budgets it counts in."""
        return RequestSubjects(
            tenant_id=self.tenant_id,
            project_id=self.project_id,
            key_id=self.api_key_id,
            base=self.base_model,
            adapter_id=self.adapter_id,
        )


class UsageRecorder:
    """`start` once, `begin` before the engine, then exactly one of `finish` and `forget`.

    `sinks` are the names of those to whom each event is told; `engine_id` asks which engine runs
    the requests now.
    """

    def __init__(
        self,
        database: Database,
        sinks: Sequence[str] = (),
        engine_id: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._database = database
        self._settler = Settler(sinks)
        self._engine_id = engine_id
        self.replicas = Replicas(database, self._settler)
        self._open: set[str] = set()
        self.replica_id = create_id("replica")

    async def start(self, *, is_alone: bool = True) -> int:
        """Take a place among the replicas. Returns how many requests became `lost`.

        `is_alone`: no other process works on this database, so whatever is unfinished was left by
        a crash; otherwise that is found out later, by its replica's silence.
        """
        num_lost = await self.replicas.lose_all() if is_alone else 0
        await self.replicas.open(self.replica_id)
        return num_lost

    async def begin(self, requests: Sequence[MeteredRequest]) -> None:
        """Write-ahead: the rows are durable when this returns. All or none.

        BudgetExceededError, and nothing is written, where a budget has no room for what they may
        cost at most. When this fails in any other way, or is cancelled, the rows may be there all
        the same: `sweep` finds them.
        """

        async def job(session: AsyncSession) -> None:
            now_ms = await db_now_ms(session)
            for req in requests:
                await self._begin(session, req, now_ms)

        ids = [req.event_id for req in requests]
        self._open.update(ids)
        try:
            await self._database.write(job)
        except BaseException:
            self._open.difference_update(ids)
            raise

    async def _begin(self, session: AsyncSession, req: MeteredRequest, now_ms: int) -> None:
        price = await PriceRepository(session).find_current(
            req.base_model, req.tenant_id, req.adapter_id, now_ms // 1000
        )
        hold_pico = Rates.of(price).worst_case_pico(
            req.num_prompt_tokens, req.max_completion_tokens
        )
        holds = await budgets.hold(session, req.subjects, hold_pico, now_ms // 1000)
        await ledger.post(session, ledger.hold(req.tenant_id, req.event_id, hold_pico))
        UsageRepository(session).add(
            UsagePending(
                event_id=req.event_id,
                tenant_id=req.tenant_id,
                project_id=req.project_id,
                api_key_id=req.api_key_id,
                model=req.model,
                base_model=req.base_model,
                adapter_id=req.adapter_id,
                adapter_version=req.adapter_version,
                adapter_digest=req.adapter_digest,
                started_at_ms=now_ms,
                replica_id=self.replica_id,
                engine_id=self._engine_id(),
                price_id=None if price is None else price.id,
                hold_pico=hold_pico,
                budget_holds=[held.to_json() for held in holds],
            )
        )

    async def forget(self, requests: Sequence[MeteredRequest]) -> None:
        """The engine never took these; repeating it changes nothing."""
        if not requests:
            return
        ids = [req.event_id for req in requests]
        owner = TenantOwner(requests[0].tenant_id)

        async def job(session: AsyncSession) -> None:
            for pending in await UsageRepository(session).take_pending(ids, owner):
                await self._settler.release(session, pending)

        await self._database.write(job)
        self._open.difference_update(ids)

    async def finish(
        self,
        req: MeteredRequest,
        usage: Usage,
        finish_reason: str | None,
        outcome: Outcome,
        ended_s: float | None = None,
    ) -> bool:
        """One transaction: the event in, the pending row out. Repeating it changes nothing.

        `ended_s` is when the request ended, by `time.monotonic`. False when there was no pending
        row: it was written before, or was given up as lost while this process did not answer.
        """
        ended_s = time.monotonic() if ended_s is None else ended_s

        async def job(session: AsyncSession) -> bool:
            repository = UsageRepository(session)
            taken = await repository.take_pending([req.event_id], TenantOwner(req.tenant_id))
            for pending in taken:
                delay_ms = round((time.monotonic() - ended_s) * 1000)
                await self._settler.settle(
                    session, pending, usage, finish_reason, outcome, delay_ms
                )
            return bool(taken)

        is_written = await self._database.write(job)
        self._open.discard(req.event_id)
        if not is_written:
            logger.warning("%s was recorded before, or was given up as lost", req.event_id)
        return is_written

    async def sweep(self) -> int:
        """Release rows of this replica whose `begin` failed after it was committed."""
        return await self.replicas.release_all_but(self.replica_id, self._open)

    async def beat(self) -> None:
        """Say that this process lives; if it was given up meanwhile, it begins anew."""
        if not await self.replicas.beat(self.replica_id):
            self.replica_id = create_id("replica")
            await self.replicas.open(self.replica_id)

    async def close(self) -> None:
        """This process meters nothing more; what it leaves becomes `lost`."""
        await self.replicas.close(self.replica_id)
