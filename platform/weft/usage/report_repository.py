"""Queries for reports: rollups where they are up to date, events where they are not.

So a report is exact to the last event, and reads few rows for all but the newest hours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import Select, and_, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from weft.db.scope import Owner, scoped, unscoped
from weft.usage.models import Replica, UsageEvent, UsageRollup
from weft.usage.money_models import Price
from weft.usage.reports import Span

Grouping: TypeAlias = Literal[
    "project_id", "api_key_id", "model", "base_model", "price_id",
    "adapter_id", "adapter_version", "adapter_digest",
]  # fmt: skip
_HOUR_S, _HOUR_MS = 3600, 3_600_000
# a bucket that all of time falls into
_ALL_TIME_S = 2**40
_SUMS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "amount_pico")


@dataclass(frozen=True, slots=True)
class ReportFilter:
    """Only the usage of these; None: of all."""

    project_ids: Collection[str] | None = None
    api_key_ids: Collection[str] | None = None
    models: Collection[str] | None = None

    def apply(
        self, statement: Select[Any], table: type[UsageEvent] | type[UsageRollup]
    ) -> Select[Any]:
        for name, column in (
            ("project_ids", table.project_id),
            ("api_key_ids", table.api_key_id),
            ("models", table.model),
        ):
            values = getattr(self, name)
            if values is not None:
                statement = statement.where(column.in_(values))
        return statement


@dataclass(slots=True)
class UsageTotal:
    """What one group of a bucket comes to."""

    num_requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    amount_pico: int = 0

    def add(self, numbers: Sequence[int]) -> None:
        num_requests, prompt, cached, completion, amount = numbers
        self.num_requests += int(num_requests)
        self.prompt_tokens += int(prompt)
        self.cached_prompt_tokens += int(cached)
        self.completion_tokens += int(completion)
        self.amount_pico += int(amount)


# by the bucket's start and the values of what is grouped by
Totals: TypeAlias = dict[tuple[int, tuple[Any, ...]], UsageTotal]


class ReportRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def sum_up(
        self, owner: Owner, span: Span, grouping: Sequence[Grouping], wanted: ReportFilter
    ) -> Totals:
        """The owner's usage of the span."""
        totals: Totals = {}
        if span.width_s < _HOUR_S:
            await self._add_events(totals, owner, span, grouping, wanted, None)
            return totals
        # asked first: an hour that is rolled up meanwhile is still counted once
        hours = await self._list_hours_to_come(owner, span)
        await self._add_rollups(totals, owner, span, grouping, wanted, hours)
        if hours:
            await self._add_events(totals, owner, span, grouping, wanted, hours)
        return totals

    async def sum_up_between(
        self, owner: Owner, start_at: int | None, end_at: int | None, grouping: Sequence[Grouping]
    ) -> dict[tuple[Any, ...], UsageTotal]:
        """The owner's usage of [start, end), in Unix seconds and not in whole hours; None: open."""
        start_at = 0 if start_at is None else start_at
        end_at = _ALL_TIME_S if end_at is None else min(end_at, _ALL_TIME_S)
        first_hour, last_hour = start_at + -start_at % _HOUR_S, end_at - end_at % _HOUR_S
        edges = [(start_at, first_hour), (last_hour, end_at)]
        totals: Totals = {}
        if first_hour < last_hour:
            span = Span(first_hour, last_hour, _ALL_TIME_S, None)
            totals = await self.sum_up(owner, span, grouping, ReportFilter())
        else:
            edges = [(start_at, end_at)]
        for start, end in edges:
            if start < end:
                span = Span(start, end, _ALL_TIME_S, None)
                await self._add_events(totals, owner, span, grouping, ReportFilter(), None)
        return {values: total for (_, values), total in totals.items()}

    async def _list_hours_to_come(self, owner: Owner, span: Span) -> list[int]:
        """The hours of the span with events that no rollup holds yet."""
        reason = "a replica has events of all tenants"
        replicas = await self._session.execute(
            unscoped(
                select(Replica.id, Replica.rolled_up_seq).where(
                    Replica.last_seq > Replica.rolled_up_seq
                ),
                reason,
            )
        )
        event = UsageEvent
        newer = [
            and_(event.replica_id == replica_id, event.replica_seq > seq)
            for replica_id, seq in replicas
        ]
        if not newer:
            return []
        hour = (event.ended_at_ms - event.ended_at_ms % _HOUR_MS).label("hour")
        statement = _within(select(hour).where(or_(*newer)).distinct(), span)
        return [int(row) // 1000 for row in await self._session.scalars(scoped(statement, owner))]

    async def _add_rollups(
        self, totals: Totals, owner: Owner, span: Span, grouping: Sequence[Grouping],
        wanted: ReportFilter, but_hours: Sequence[int],
    ) -> None:  # fmt: skip
        table = UsageRollup
        bucket = (table.hour_at - table.hour_at % span.width_s).label("bucket")
        keys = [_column(table, name) for name in grouping]
        statement = select(bucket, *keys, func.sum(table.num_requests), *_sums(table))
        statement = statement.where(table.hour_at >= span.start_at, table.hour_at < span.end_at)
        if but_hours:
            statement = statement.where(not_(table.hour_at.in_(but_hours)))
        statement = wanted.apply(statement, table).group_by(bucket, *keys)
        for row in await self._session.execute(scoped(statement, owner)):
            _add(totals, int(row[0]), row[1:], len(keys))

    async def _add_events(
        self, totals: Totals, owner: Owner, span: Span, grouping: Sequence[Grouping],
        wanted: ReportFilter, hours: Sequence[int] | None,
    ) -> None:  # fmt: skip
        table, width_ms = UsageEvent, span.width_s * 1000
        bucket = (table.ended_at_ms - table.ended_at_ms % width_ms).label("bucket")
        keys = [_column(table, name) for name in grouping]
        statement = select(bucket, *keys, func.count(table.event_id), *_sums(table))
        if hours is None:
            statement = _within(statement, span)
        else:
            statement = statement.where(or_(*(_is_in(start, _HOUR_S) for start in hours)))
        statement = wanted.apply(statement, table).group_by(bucket, *keys)
        for row in await self._session.execute(scoped(statement, owner)):
            _add(totals, int(row[0]) // 1000, row[1:], len(keys))

    async def list_rates(self, price_ids: Collection[str]) -> dict[str, tuple[int, int, int]]:
        """Picodollars per token of input, cached input and output, by price."""
        statement = select(
            Price.id, Price.input_rate, Price.cached_input_rate, Price.output_rate
        ).where(Price.id.in_(price_ids))
        rows = await self._session.execute(unscoped(statement, "prices are the operator's"))
        return {price_id: (fresh, cached, output) for price_id, fresh, cached, output in rows}


def _column(
    table: type[UsageEvent] | type[UsageRollup], name: Grouping
) -> InstrumentedAttribute[Any]:
    column: InstrumentedAttribute[Any] = getattr(table, name)
    return column


def _sums(table: type[UsageEvent] | type[UsageRollup]) -> list[Any]:
    return [func.sum(getattr(table, name)) for name in _SUMS]


def _within(statement: Select[Any], span: Span) -> Select[Any]:
    return statement.where(_is_in(span.start_at, span.end_at - span.start_at))


def _is_in(start_at: int, length_s: int) -> Any:
    ended_at_ms = UsageEvent.ended_at_ms
    return and_(ended_at_ms >= start_at * 1000, ended_at_ms < (start_at + length_s) * 1000)


def _add(totals: Totals, bucket: int, row: Sequence[Any], num_keys: int) -> None:
    key = (bucket, tuple(row[:num_keys]))
    totals.setdefault(key, UsageTotal()).add(row[num_keys:])
