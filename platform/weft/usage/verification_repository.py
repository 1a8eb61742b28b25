"""Queries that compare tables with each other, over all tenants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Executable, and_, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from weft.db.scope import unscoped
from weft.limits.models import Budget
from weft.usage.ledger import HOLDS
from weft.usage.models import (
    DueRollup,
    OutboxMessage,
    Replica,
    UsageEvent,
    UsagePending,
    UsageRollup,
)
from weft.usage.money_models import LedgerEntry, LedgerTx, Price
from weft.usage.outbox import EVENT_KIND
from weft.usage.outbox_repository import OutboxRepository
from weft.usage.rollups import HOUR_S

_REASON = "the whole platform's books are compared"
_HOUR_MS = HOUR_S * 1000


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """A replica's events."""

    replica_id: str
    num_events: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over events or rollups."""

    num_requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    amount_pico: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class EngineBill:
    """Events of an engine until a checkpoint; `is_all`: it has had no other ones, and runs none."""

    prompt_tokens: int
    completion_tokens: int
    num_lost: int
    is_all: bool


class VerificationRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def _rows(self, statement: Executable) -> Sequence[Any]:
        return (await self._session.execute(unscoped(statement, _REASON))).all()

    async def list_replicas(self) -> Sequence[Replica]:
        statement = select(Replica).order_by(Replica.started_at_ms, Replica.id)
        return (await self._session.scalars(unscoped(statement, _REASON))).all()

    async def list_spans(self) -> Sequence[SequenceSpan]:
        seq = UsageEvent.replica_seq
        statement = select(UsageEvent.replica_id, func.count(), func.max(seq))
        rows = await self._rows(unscoped(statement.group_by(UsageEvent.replica_id), _REASON))
        return [SequenceSpan(*row) for row in rows]

    async def list_gaps(
        self, replica_id: str, last_seq: int, num_rows: int
    ) -> Sequence[tuple[int, int]]:
        """(first, last) numbers that are missing up to `last_seq`."""
        seq = UsageEvent.replica_seq
        before = func.coalesce(func.lag(seq).over(order_by=seq), 0).label("before")
        numbered = select(seq.label("seq"), before).where(UsageEvent.replica_id == replica_id)
        inner = unscoped(numbered, _REASON).subquery()
        statement = (
            select(inner.c.before + 1, inner.c.seq - 1)
            .where(inner.c.seq > inner.c.before + 1)
            .order_by(inner.c.seq)
            .limit(num_rows)
        )
        gaps = [
            (int(first), int(last))
            for first, last in await self._rows(unscoped(statement, _REASON))
        ]
        end = select(func.coalesce(func.max(seq), 0)).where(UsageEvent.replica_id == replica_id)
        highest = (await self._rows(unscoped(end, _REASON)))[0][0]
        return [*gaps, (highest + 1, last_seq)] if highest < last_seq else gaps

    async def list_wrong_amounts(self, num_rows: int) -> Sequence[tuple[str, int, int]]:
        """(event, what it costs, what it should cost)."""
        event = UsageEvent
        expected = case(
            (or_(event.price_id.is_(None), event.outcome == "lost"), 0),
            else_=(event.prompt_tokens - event.cached_prompt_tokens) * Price.input_rate
            + event.cached_prompt_tokens * Price.cached_input_rate
            + event.completion_tokens * Price.output_rate,
        )
        statement = (
            select(event.event_id, event.amount_pico, expected)
            .outerjoin(Price, Price.id == event.price_id)
            .where(event.amount_pico != expected)
            .limit(num_rows)
        )
        return [tuple(row) for row in await self._rows(unscoped(statement, _REASON))]

    async def count_transactions(self) -> int:
        statement = select(func.count(LedgerTx.id))
        count: int = (await self._rows(unscoped(statement, _REASON)))[0][0]
        return count

    async def list_unbalanced(self, num_rows: int) -> Sequence[tuple[str, int]]:
        total = func.sum(LedgerEntry.amount_pico)
        statement = select(LedgerEntry.tx_id, total).group_by(LedgerEntry.tx_id).having(total != 0)
        rows = await self._rows(unscoped(statement.limit(num_rows), _REASON))
        return [(tx_id, int(amount)) for tx_id, amount in rows]

    async def list_charged_otherwise(self, num_rows: int) -> Sequence[tuple[str, int, int]]:
        """(event, what it costs, what its tenant owes for it)."""
        charged = func.coalesce(LedgerEntry.amount_pico, 0)
        statement = (
            select(UsageEvent.event_id, UsageEvent.amount_pico, charged)
            .outerjoin(
                LedgerEntry,
                and_(
                    LedgerEntry.tx_id == UsageEvent.event_id + ":settle",
                    LedgerEntry.account == _receivable(UsageEvent.tenant_id),
                ),
            )
            .where(UsageEvent.amount_pico != charged)
            .limit(num_rows)
        )
        return [tuple(row) for row in await self._rows(unscoped(statement, _REASON))]

    async def list_charged_for_nothing(self, num_rows: int) -> Sequence[str]:
        """Ids of events that are not there."""
        statement = (
            select(LedgerTx.event_id)
            .join(LedgerEntry, LedgerEntry.tx_id == LedgerTx.id)
            .outerjoin(UsageEvent, UsageEvent.event_id == LedgerTx.event_id)
            .where(
                LedgerTx.kind == "settle",
                LedgerEntry.account == _receivable(LedgerTx.tenant_id),
                UsageEvent.event_id.is_(None),
            )
            .limit(num_rows)
        )
        return [str(event_id) for (event_id,) in await self._rows(unscoped(statement, _REASON))]

    async def list_pending(self) -> Sequence[UsagePending]:
        statement = unscoped(select(UsagePending), _REASON)
        return (await self._session.scalars(statement)).all()

    async def sum_held(self) -> dict[str, int]:
        """Balances of the accounts of holds, but for those at 0."""
        total = func.sum(LedgerEntry.amount_pico)
        is_held = or_(LedgerEntry.account == HOLDS, LedgerEntry.account.like("tenant:%:held"))
        statement = select(LedgerEntry.account, total).where(is_held)
        statement = statement.group_by(LedgerEntry.account).having(total != 0)
        return {
            account: int(amount)
            for account, amount in await self._rows(unscoped(statement, _REASON))
        }

    async def list_budgets(self) -> Sequence[Budget]:
        statement = unscoped(select(Budget).order_by(Budget.id), _REASON)
        return (await self._session.scalars(statement)).all()

    async def list_due_hours(self) -> set[int]:
        """Hours (Unix s) with events that are not in the rollups yet."""
        hour = UsageEvent.ended_at_ms // _HOUR_MS
        statement = (
            select(hour)
            .join(Replica, Replica.id == UsageEvent.replica_id)
            .where(UsageEvent.replica_seq > Replica.rolled_up_seq)
            .distinct()
        )
        rows = await self._rows(unscoped(statement, _REASON))
        return {number * HOUR_S for (number,) in rows}

    async def list_due_spans(self, width_s: int) -> set[int]:
        """Where hours or days begin that are to be made of their minutes or hours anew."""
        statement = select(DueRollup.start_at).where(DueRollup.width_s == width_s)
        return {start_at for (start_at,) in await self._rows(unscoped(statement, _REASON))}

    async def sum_events(self) -> dict[tuple[int, str], Counts]:
        """By hour (Unix s) and tenant."""
        hour = (UsageEvent.ended_at_ms // _HOUR_MS).label("hour")
        sums = _sums(UsageEvent, func.count())
        statement = select(hour, UsageEvent.tenant_id, *sums).group_by(hour, UsageEvent.tenant_id)
        rows = await self._rows(unscoped(statement, _REASON))
        return {
            (number * HOUR_S, tenant_id): _counts(counts) for number, tenant_id, *counts in rows
        }

    async def sum_rollups(self, width_s: int, by_s: int) -> dict[tuple[int, str], Counts]:
        """Those of `width_s`, by spans of `by_s` and tenant."""
        row = UsageRollup
        start_at = row.start_at - row.start_at % by_s
        sums = _sums(row, func.sum(row.num_requests))
        statement = select(start_at, row.tenant_id, *sums).where(row.width_s == width_s)
        statement = statement.group_by(start_at, row.tenant_id)
        rows = await self._rows(unscoped(statement, _REASON))
        return {(start, tenant_id): _counts(counts) for start, tenant_id, *counts in rows}

    async def sum_of_engine(self, engine_id: str, until_ms: int) -> EngineBill:
        event = UsageEvent
        statement = select(
            func.coalesce(func.sum(event.prompt_tokens), 0),
            func.coalesce(func.sum(event.completion_tokens), 0),
            func.coalesce(func.sum(case((event.outcome == "lost", 1), else_=0)), 0),
        ).where(event.engine_id == engine_id, event.recorded_at_ms <= until_ms)
        ((prompt, completion, num_lost),) = await self._rows(unscoped(statement, _REASON))
        later = select(func.count()).where(
            event.engine_id == engine_id, event.recorded_at_ms > until_ms
        )
        running = select(func.count()).where(UsagePending.engine_id == engine_id)
        num_others = 0
        for others in (later, running):
            num_others += (await self._rows(unscoped(others, _REASON)))[0][0]
        return EngineBill(int(prompt), int(completion), int(num_lost), num_others == 0)

    async def list_orphan_messages(self, num_rows: int) -> Sequence[tuple[str, str]]:
        """(sink, id) of messages about events that are not there."""
        message = OutboxMessage
        statement = (
            select(message.sink, message.id)
            .outerjoin(UsageEvent, UsageEvent.event_id == message.id)
            .where(message.kind == EVENT_KIND, UsageEvent.event_id.is_(None))
            .limit(num_rows)
        )
        return [tuple(row) for row in await self._rows(unscoped(statement, _REASON))]

    async def count_undelivered(self) -> dict[str, int]:
        """By sink."""
        return await OutboxRepository(self._session).count_undelivered()


def _receivable(tenant_id: InstrumentedAttribute[str]) -> ColumnElement[str]:
    """The account of the tenant that owes."""
    return "tenant:" + tenant_id + ":receivable"


def _sums(
    row: type[UsageEvent] | type[UsageRollup], num_requests: ColumnElement[int]
) -> tuple[ColumnElement[int], ...]:
    return (
        num_requests,
        func.sum(row.prompt_tokens),
        func.sum(row.cached_prompt_tokens),
        func.sum(row.completion_tokens),
        func.sum(row.amount_pico),
    )


def _counts(values: Sequence[Any]) -> Counts:
    return Counts(*(int(value) for value in values))
