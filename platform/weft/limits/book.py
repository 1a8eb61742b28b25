"""Which rules hold for a request: rows of the database, remembered for a moment.

A change holds on every worker once what they remember is older than `TTL_S`.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from weft.db.database import Database
from weft.db.scope import TenantOwner
from weft.limits.limit_repository import LimitRepository
from weft.limits.limiter import Rates, Rule
from weft.limits.models import Limit
from weft.limits.subjects import RequestSubjects, Subject

TTL_S = 2.0
_MAX_ENTRIES = 10_000

_Rates: TypeAlias = Mapping[tuple[Subject, str], Rates]


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read for some subjects, until `until_s`, and the rules that follow, by model."""

    until_s: float
    rates: _Rates
    rules: dict[str, tuple[Rule, ...]]


class LimitBook:
    """Rules by request. `defaults` hold for tenants, limit by limit, where they have none."""

    def __init__(
        self,
        database: Database,
        defaults: Rates,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database, self._defaults, self._clock_s = database, defaults, clock_s
        self._known: OrderedDict[RequestSubjects, _Known] = OrderedDict()
        self._asked: dict[RequestSubjects, asyncio.Task[_Known]] = {}

    async def rules_for(self, subjects: RequestSubjects, model: str) -> tuple[Rule, ...]:
        """All rules of a request to `model`, "" where that is not known yet: the tenant's first."""
        known = self._known.get(subjects)
        if known is None or self._clock_s() >= known.until_s:
            known = await self._read(subjects)
        # models that have no limit of their own share their rules
        key = model if (Subject("project", subjects.project_id), model) in known.rates else ""
        rules = known.rules.get(key)
        if rules is None:
            rules = known.rules[key] = self._rules(subjects, key, known.rates)
        return rules

    def _rules(self, subjects: RequestSubjects, model: str, rates: _Rates) -> tuple[Rule, ...]:
        rules = [Rule(subject, self._of(subject, rates)) for subject in subjects.all]
        if model:
            project = Subject("project", subjects.project_id)
            rules.append(Rule(project, rates[project, model], model))
        return tuple(rule for rule in rules if not rule.rates.is_empty)

    def _of(self, subject: Subject, rates: _Rates) -> Rates:
        own = rates.get((subject, ""), Rates())
        return own.over(self._defaults) if subject.kind == "tenant" else own

    async def _read(self, subjects: RequestSubjects) -> _Known:
        task = self._asked.get(subjects)
        if task is None:
            # requests at once ask once; none of them ends the question for the others
            task = asyncio.create_task(self._ask(subjects))
            self._asked[subjects] = task
            task.add_done_callback(lambda _: self._asked.pop(subjects))
        return await asyncio.shield(task)

    async def _ask(self, subjects: RequestSubjects) -> _Known:
        # as old as the question, not as the answer
        until_s = self._clock_s() + TTL_S
        async with self._database.reading() as session:
            repository = LimitRepository(session, TenantOwner(subjects.tenant_id))
            rates = _by_subject(await repository.list_of(subjects.all))
        known = self._known[subjects] = _Known(until_s, rates, {})
        self._known.move_to_end(subjects)
        while len(self._known) > _MAX_ENTRIES:
            self._known.popitem(last=False)
        return known


def rates_of(row: Limit) -> Rates:
    """The part of a row that binds requests."""
    return Rates(row.requests_per_minute, row.tokens_per_minute, row.max_running)


def _by_subject(rows: Sequence[Limit]) -> _Rates:
    return {(Subject(row.subject_kind, row.subject_id), row.model): rates_of(row) for row in rows}
