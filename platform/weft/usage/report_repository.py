"""Queries for reports: the widest rollups that are up to date, and events where none are.

So a report is exact to the last event and reads few rows: days, hours of days that are not rolled
up, minutes of such hours, events of such minutes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from weft.db.scope import Owner, scoped, unscoped
from weft.usage.intervals import Interval, divide, join, split
from weft.usage.models import DueRollup, Replica, UsageEvent, UsageRollup
from weft.usage.money_models import Price
from weft.usage.reports import Span

Grouping: TypeAlias = Literal[
    "project_id", "api_key_id", "model", "base_model", "price_id",
    "adapter_id", "adapter_version", "adapter_digest",
]  # fmt: skip
_MINUTE_S, _MINUTE_MS = 60, 60_000
# of rollups, the widest first
_WIDTHS_S = (86_400, 3600, _MINUTE_S)
# of one statement
_MAX_INTERVALS = 100
# a bucket that all of time falls into
_ALL_TIME_S = 2**40
_Source: TypeAlias = type[UsageEvent] | type[UsageRollup]
_SUMS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "amount_pico")


@dataclass(frozen=True, slots=True)
class ReportFilter:
    """Only the usage of these; None: of all."""

    project_ids: Collection[str] | None = None
    api_key_ids: Collection[str] | None = None
    models: Collection[str] | None = None

    def apply(self, statement: Select[Any], table: _Source) -> Select[Any]:
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
        """The owner's usage of the span, which need not begin or end with a bucket.

        What is due is asked first: a span that is rolled up meanwhile is still counted once.
        """
        totals: Totals = {}
        query = _Query(owner, span, grouping, wanted)
        left: Sequence[Interval] = [Interval(span.start_at, span.end_at)]
        minutes = await self._list_due_minutes(owner, left[0])
        marked = await self._list_due_spans(left[0])
        for width_s in _WIDTHS_S:
            if width_s > span.width_s:
                continue
            whole, edges = split(left, width_s)
            due = {minute - minute % width_s for minute in minutes} | marked.get(width_s, set())
            fresh, stale = divide(whole, join(due, width_s))
            if len(fresh) > _MAX_INTERVALS:  # what is finer is as right
                fresh, stale = [], whole
            await self._add_rollups(totals, query, width_s, fresh)
            left = sorted((*edges, *stale))
        await self._add_events(totals, query, left)
        return totals

    async def sum_up_between(
        self, owner: Owner, start_at: int | None, end_at: int | None, grouping: Sequence[Grouping]
    ) -> dict[tuple[Any, ...], UsageTotal]:
        """The owner's usage of [start, end), in Unix seconds; None: open."""
        start_at = 0 if start_at is None else start_at
        end_at = _ALL_TIME_S if end_at is None else min(end_at, _ALL_TIME_S)
        if start_at >= end_at:
            return {}
        span = Span(start_at, end_at, _ALL_TIME_S, None)
        totals = await self.sum_up(owner, span, grouping, ReportFilter())
        return {values: total for (_, values), total in totals.items()}

    async def _list_due_minutes(self, owner: Owner, interval: Interval) -> Sequence[int]:
        """Where minutes begin that have events which no rollup holds yet."""
        replicas = await self._session.execute(
            unscoped(
                select(Replica.id, Replica.rolled_up_seq).where(
                    Replica.last_seq > Replica.rolled_up_seq
                ),
                "a replica has events of all tenants",
            )
        )
        event = UsageEvent
        newer = [
            and_(event.replica_id == replica_id, event.replica_seq > seq)
            for replica_id, seq in replicas
        ]
        if not newer:
            return []
        minute = event.ended_at_ms // _MINUTE_MS
        statement = select(minute).where(or_(*newer), _is_in(interval, event.ended_at_ms, 1000))
        rows = await self._session.scalars(scoped(statement.distinct(), owner))
        return [number * _MINUTE_S for number in rows]

    async def _list_due_spans(self, interval: Interval) -> dict[int, set[int]]:
        """Where hours and days begin that are due, by their width."""
        statement = select(DueRollup.width_s, DueRollup.start_at).where(
            # of a span that begins before the interval only a part is in it
            _is_in(interval, DueRollup.start_at, 1)
        )
        found: dict[int, set[int]] = {}
        reason = "a span is due for all tenants"
        for width_s, start_at in await self._session.execute(unscoped(statement, reason)):
            found.setdefault(width_s, set()).add(start_at)
        return found

    async def _add_rollups(
        self, totals: Totals, query: _Query, width_s: int, intervals: Sequence[Interval]
    ) -> None:
        if not intervals:
            return
        table = UsageRollup
        within = _is_in_any(intervals, table.start_at, 1)
        bucket = table.start_at - table.start_at % query.span.width_s
        if width_s == query.span.width_s:  # as it is, for rows are in this order
            bucket = table.start_at.expression
        sums = [func.sum(getattr(table, name)) for name in ("num_requests", *_SUMS)]
        conditions = (table.width_s == width_s, within)
        statement = _sum_up(query, table, bucket, sums, *conditions)
        await self._add(statement, totals, len(query.grouping))

    async def _add_events(
        self, totals: Totals, query: _Query, intervals: Sequence[Interval]
    ) -> None:
        if not intervals:
            return
        table = UsageEvent
        at = table.ended_at_ms // 1000
        sums = [func.count(), *(func.sum(getattr(table, name)) for name in _SUMS)]
        bucket = at - at % query.span.width_s
        within = _is_in_any(intervals, table.ended_at_ms, 1000)
        statement = _sum_up(query, table, bucket, sums, within)
        await self._add(statement, totals, len(query.grouping))

    async def _add(self, statement: Select[Any], totals: Totals, num_keys: int) -> None:
        for row in await self._session.execute(statement):
            key = (int(row[0]), tuple(row[1 : num_keys + 1]))
            totals.setdefault(key, UsageTotal()).add(row[num_keys + 1 :])

    async def list_rates(self, price_ids: Collection[str]) -> dict[str, tuple[int, int, int]]:
        """Picodollars per token of input, cached input and output, by price."""
        statement = select(
            Price.id, Price.input_rate, Price.cached_input_rate, Price.output_rate
        ).where(Price.id.in_(price_ids))
        rows = await self._session.execute(unscoped(statement, "prices are the operator's"))
        return {price_id: (fresh, cached, output) for price_id, fresh, cached, output in rows}


@dataclass(frozen=True, slots=True)
class _Query:
    """What a report asks of any table."""

    owner: Owner
    span: Span
    grouping: Sequence[Grouping]
    wanted: ReportFilter


def _sum_up(
    query: _Query,
    table: _Source,
    bucket: ColumnElement[int],
    sums: Sequence[ColumnElement[int]],
    *conditions: ColumnElement[bool],
) -> Select[Any]:
    """(bucket, what is grouped by, sums) of the owner's rows."""
    keys = [getattr(table, name) for name in query.grouping]
    statement = select(bucket, *keys, *sums).where(*conditions).group_by(bucket, *keys)
    return scoped(query.wanted.apply(statement, table), query.owner)


def _is_in(
    interval: Interval, column: InstrumentedAttribute[int], per_second: int
) -> ColumnElement[bool]:
    return and_(column >= interval.start_at * per_second, column < interval.end_at * per_second)


def _is_in_any(
    intervals: Sequence[Interval], column: InstrumentedAttribute[int], per_second: int
) -> ColumnElement[bool]:
    """Of intervals in order; an index is read from the first one to the last."""
    hull = _is_in(Interval(intervals[0].start_at, intervals[-1].end_at), column, per_second)
    if len(intervals) == 1:
        return hull
    return and_(hull, or_(*(_is_in(interval, column, per_second) for interval in intervals)))
