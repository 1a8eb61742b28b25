"""Any series of calls has the same results in both limiters as in a list of all that happened."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.limits.conftest import Clock

from weft.limits.in_process import InProcessLimiter
from weft.limits.limiter import (
    LEASE_MS,
    STEP_MS,
    STEPS,
    WINDOW_MS,
    Grant,
    Limiter,
    Rates,
    Refusal,
    Reservation,
    Rule,
)
from weft.limits.redis_limiter import RedisLimiter, create_client
from weft.limits.subjects import Subject

RULES = (
    Rule(Subject("tenant", "t"), Rates(5, 40, 3)),
    Rule(Subject("key", "k"), Rates(3, None, None)),
    Rule(Subject("key", "l"), Rates(None, 25, 2)),
)
SUBSETS = [RULES, RULES[:1], RULES[:2], (RULES[0], RULES[2])]
_prefixes = (f"test{i}" for i in itertools.count())


@dataclass
class Entry:
    """One admitted job, as it stands."""

    rules: tuple[Rule, ...]
    at_ms: int
    num_tokens: int
    lease_end_ms: int
    num_requests: int = 1
    is_over: bool = False


@dataclass
class Model:
    """Everything that was ever admitted, added up anew for each question."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def taken(self, rule: Rule, now_ms: int) -> tuple[int, int, int]:
        """(requests, tokens, running) that count now."""
        mine = [entry for entry in self.entries.values() if rule in entry.rules]
        recent = [e for e in mine if now_ms // STEP_MS - e.at_ms // STEP_MS <= STEPS]
        running = sum(not e.is_over and e.lease_end_ms > now_ms for e in mine)
        return sum(e.num_requests for e in recent), sum(e.num_tokens for e in recent), running

    def has_room(self, rules: tuple[Rule, ...], jobs: dict[str, int], now_ms: int) -> bool:
        for rule in rules:
            limits = (rule.rates.requests_per_minute, rule.rates.tokens_per_minute)
            wanted = (len(jobs), sum(jobs.values()), len(jobs))
            for limit, taken, more in zip(
                (*limits, rule.rates.max_running), self.taken(rule, now_ms), wanted, strict=True
            ):
                if limit is not None and taken + more > limit:
                    return False
        return True

    def assert_no_minute_saw_more(self) -> None:
        """In true time, not in steps."""
        for rule, begin in itertools.product(RULES, self.entries.values()):
            seen = [
                entry
                for entry in self.entries.values()
                if rule in entry.rules and 0 <= entry.at_ms - begin.at_ms < WINDOW_MS
            ]
            limits = (rule.rates.requests_per_minute, rule.rates.tokens_per_minute)
            sums = (sum(e.num_requests for e in seen), sum(e.num_tokens for e in seen))
            assert all(x is None or s <= x for x, s in zip(limits, sums, strict=True))


some_jobs = st.lists(st.integers(0, 20), min_size=1, max_size=3)
reserve = st.tuples(st.just("reserve"), st.sampled_from(SUBSETS), some_jobs)
end = st.tuples(
    st.sampled_from(["settle", "cancel", "renew"]), st.integers(0, 30), st.integers(0, 20)
)
wait = st.tuples(
    st.just("wait"), st.one_of(st.integers(1, 300), st.integers(1, WINDOW_MS + 500)), st.just(0)
)  # fmt: skip
series = st.lists(st.one_of(reserve, reserve, end, wait), max_size=40)


async def run(limiter: Limiter, clock: Clock, calls: list[tuple[Any, Any, Any]]) -> None:
    model, held = Model(), list[Reservation]()
    for number, (call, what, amount) in enumerate(calls):
        if call == "wait":
            clock.now_ms += what
        elif call == "reserve":
            jobs = {f"j{number}-{i}": tokens for i, tokens in enumerate(amount)}
            may = model.has_room(what, jobs, clock.now_ms)
            answer = await limiter.reserve(what, jobs)
            assert isinstance(answer, Grant) == may
            if isinstance(answer, Grant):
                held += answer.reservations
                for job, tokens in jobs.items():
                    end_ms = clock.now_ms + LEASE_MS
                    model.entries[job] = Entry(what, clock.now_ms, tokens, end_ms)
            else:
                await assert_is_honest(model, answer, jobs, clock.now_ms)
        elif what < len(held):
            await apply(limiter, model, call, held[what], amount, clock.now_ms)
        await assert_levels(limiter, model, clock.now_ms)
    model.assert_no_minute_saw_more()


async def apply(
    limiter: Limiter, model: Model, call: str, held: Reservation, amount: int, now_ms: int
) -> None:
    entry = model.entries[held.id]
    if call == "renew":
        if not entry.is_over:
            await limiter.renew([held])
            entry.lease_end_ms = now_ms + LEASE_MS
        return
    if call == "settle":
        await limiter.settle(held, amount)
    else:
        await limiter.cancel(held)
    if not entry.is_over:
        entry.is_over = True
        entry.num_tokens = min(amount, held.num_tokens) if call == "settle" else 0
        entry.num_requests = int(call == "settle")


async def assert_is_honest(
    model: Model, refused: Refusal, jobs: dict[str, int], now_ms: int
) -> None:
    """Not before that time has what binds room, unless something is given back."""
    if refused.dimension == "running":
        return
    rates, retry_ms = refused.rule.rates, refused.retry_after_ms
    index = 0 if refused.dimension == "requests" else 1
    limit = (rates.requests_per_minute, rates.tokens_per_minute)[index]
    wanted = (len(jobs), sum(jobs.values()))[index]
    assert limit is not None
    if retry_ms is None:
        assert wanted > limit
        return
    assert model.taken(refused.rule, now_ms + retry_ms - 1)[index] + wanted > limit
    assert model.taken(refused.rule, now_ms + retry_ms)[index] + wanted <= limit


async def assert_levels(limiter: Limiter, model: Model, now_ms: int) -> None:
    for rule, state in zip(RULES, await limiter.peek(RULES), strict=True):
        for index, level in enumerate((state.requests, state.tokens)):
            if level is None:
                continue
            taken = model.taken(rule, now_ms)[index]
            assert level.remaining == max(level.limit - taken, 0)
            assert (level.reset_ms == 0) == (taken == 0)
            assert model.taken(rule, now_ms + level.reset_ms)[index] == 0
            if taken:
                assert model.taken(rule, now_ms + level.reset_ms - 1)[index] > 0


@given(series)
@settings(max_examples=150, deadline=None)
def test_in_process_every_series_goes_as_in_the_list(calls: list[tuple[Any, Any, Any]]) -> None:
    clock = Clock()
    asyncio.run(run(InProcessLimiter(clock), clock, calls))


@given(series)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_in_redis_every_series_goes_as_in_the_list(
    redis_url: str, calls: list[tuple[Any, Any, Any]]
) -> None:
    asyncio.run(_run_in_redis(redis_url, calls))


@pytest.mark.verify
@given(series)
@settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_in_redis_very_many_series_go_as_in_the_list(
    redis_url: str, calls: list[tuple[Any, Any, Any]]
) -> None:
    asyncio.run(_run_in_redis(redis_url, calls))


async def _run_in_redis(redis_url: str, calls: list[tuple[Any, Any, Any]]) -> None:
    clock = Clock()
    # each example has counts of its own
    limiter = RedisLimiter(create_client(redis_url), next(_prefixes), clock)
    try:
        await run(limiter, clock, calls)
    finally:
        await limiter.close()
