"""Records usage so that every request that reached the engine is one event, also after a crash.

Counts come from the engine's `Usage`; nothing is counted here. An event, what it costs in the
ledger and in budgets, and the messages about it are written in one transaction or not at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weft.db import clock
from weft.db.database import Database
from weft.db.ids import create_id
from weft.db.prepared import Row
from weft.db.scope import TenantOwner
from weft.db.transactions import Transaction
from weft.limits.budgets import BudgetExceededError, BudgetHold, BudgetsOf, Wanted
from weft.limits.subjects import RequestSubjects
from weft.messages import Usage
from weft.usage import ledger, price_repository, repository
from weft.usage.models import Outcome
from weft.usage.prices import Rates
from weft.usage.replicas import Replicas
from weft.usage.repository import Pending
from weft.usage.settling import Ending, Settler

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


@dataclass(frozen=True, slots=True)
class _Admission:
    """A request with its price, None where it is free, and the most that it costs then."""

    req: MeteredRequest
    price_id: str | None
    hold_pico: int

    def posting(self) -> ledger.Posting:
        return ledger.hold(self.req.tenant_id, self.req.event_id, self.hold_pico)

    def pending(
        self, now_ms: int, replica_id: str, engine_id: str | None, holds: Sequence[BudgetHold]
    ) -> Pending:
        req = self.req
        return Pending(
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
            replica_id=replica_id,
            engine_id=engine_id,
            price_id=self.price_id,
            hold_pico=self.hold_pico,
            budget_holds=[held.to_json() for held in holds],
        )


@dataclass(frozen=True, slots=True)
class _Finished:
    """An end that is to be recorded; `ended_s` by `time.monotonic`."""

    req: MeteredRequest
    usage: Usage
    finish_reason: str | None
    outcome: Outcome
    ended_s: float


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
        self._begins = database.batches(self._begin_all)
        self._ends = database.batches(self._finish_all)
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
        """Write-ahead: the rows outlive this process when this returns. All or none.

        On SQLite, whose machine is the engine's as well, they may be forgotten with the engine when
        the machine loses power.

        BudgetExceededError, and nothing is written, where a budget has no room for what they may
        cost at most. When this fails in any other way, or is cancelled, the rows may be there all
        the same: `sweep` finds them.
        """
        ids = [req.event_id for req in requests]
        self._open.update(ids)
        try:
            await self._begins.run(requests)
        except BaseException:
            self._open.difference_update(ids)
            raise

    async def _begin_all(
        self, tx: Transaction, groups: Sequence[Sequence[MeteredRequest]]
    ) -> list[None | Exception]:
        everyone = [req for group in groups for req in group]
        time_asked = await clock.ask(tx)
        whose = list(dict.fromkeys(_priced_by(req) for req in everyone))
        prices_asked = await price_repository.ask_current(tx, whose)
        found = await BudgetsOf.ask(tx, (req.subjects for req in everyone))
        now_ms = await clock.read(time_asked)
        prices = dict(zip(whose, await prices_asked.rows(), strict=True))
        admissions = [
            [self._admission(req, prices[_priced_by(req)]) for req in group] for group in groups
        ]
        wanted = [
            [Wanted(each.req.subjects, each.hold_pico, now_ms // 1000) for each in group]
            for group in admissions
        ]
        results = await found.hold(tx, wanted)
        begun = [
            (admission, holds)
            for group, held in zip(admissions, results, strict=True)
            if not isinstance(held, BudgetExceededError)
            for admission, holds in zip(group, held, strict=True)
        ]
        await ledger.post(tx, [each.posting() for each, _ in begun])
        engine_id = self._engine_id()
        await repository.add_pending(
            tx,
            [each.pending(now_ms, self.replica_id, engine_id, holds) for each, holds in begun],
        )
        return [held if isinstance(held, BudgetExceededError) else None for held in results]

    def _admission(self, req: MeteredRequest, prices: Sequence[Row]) -> _Admission:
        if not prices:
            return _Admission(req, None, 0)
        price_id, *rates = prices[0]
        price = Rates(*rates)
        self._settler.note_rates(price_id, price)
        hold_pico = price.worst_case_pico(req.num_prompt_tokens, req.max_completion_tokens)
        return _Admission(req, price_id, hold_pico)

    async def forget(self, requests: Sequence[MeteredRequest]) -> None:
        """The engine never took these; repeating it changes nothing."""

        async def job(tx: Transaction) -> None:
            taken = await repository.take_pending(
                tx, [(req.event_id, TenantOwner(req.tenant_id)) for req in requests]
            )
            await self._settler.release(tx, [pending for pending in taken if pending is not None])

        await self._database.transact(job, is_synced=False)
        self._open.difference_update(req.event_id for req in requests)

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
        is_written = await self._ends.run(_Finished(req, usage, finish_reason, outcome, ended_s))
        await self._database.sync()
        self._open.discard(req.event_id)
        if not is_written:
            logger.warning("%s was recorded before, or was given up as lost", req.event_id)
        return is_written

    async def _finish_all(
        self, tx: Transaction, finished: Sequence[_Finished]
    ) -> list[bool | Exception]:
        wanted = [(each.req.event_id, TenantOwner(each.req.tenant_id)) for each in finished]
        taken = await repository.take_pending(tx, wanted)
        now_s = time.monotonic()
        await self._settler.settle(
            tx,
            [
                Ending(
                    pending, each.usage, each.finish_reason, each.outcome,
                    delay_ms=round((now_s - each.ended_s) * 1000),
                )
                for each, pending in zip(finished, taken, strict=True)
                if pending is not None
            ],
        )  # fmt: skip
        return [pending is not None for pending in taken]

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


def _priced_by(req: MeteredRequest) -> tuple[str, str, str | None]:
    return req.base_model, req.tenant_id, req.adapter_id
