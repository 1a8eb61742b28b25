"""The limiter of a single worker: counts in memory, lost with the process as its requests are.

Nothing is awaited between a check and its effect, so on one event loop each method is atomic.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from weft.limits.limiter import (
    LEASE_MS,
    STEP_MS,
    STEPS,
    Dimension,
    Grant,
    Level,
    Refusal,
    Reservation,
    Rule,
    RuleState,
)

# how long a place is likely taken: nobody knows when a request ends
RUNNING_RETRY_MS = 1000
# empty counters are let go every so many reservations
_SWEEP_EVERY = 1024


@dataclass(slots=True)
class _Window:
    """Amounts by step, the oldest first."""

    steps: deque[int] = field(default_factory=deque)
    amounts: dict[int, int] = field(default_factory=dict)
    total: int = 0

    def expire(self, now_step: int) -> None:
        while self.steps and now_step - self.steps[0] > STEPS:
            self.total -= self.amounts.pop(self.steps.popleft())

    def add(self, step: int, amount: int) -> None:
        if not self.steps or self.steps[-1] != step:
            self.steps.append(step)
        self.amounts[step] = self.amounts.get(step, 0) + amount
        self.total += amount

    def refund(self, step: int, amount: int) -> None:
        if step in self.amounts:
            self.amounts[step] -= amount
            self.total -= amount

    def free_in_ms(self, amount: int, now_ms: int) -> int:
        """Until `amount` of what is taken has expired."""
        for step in self.steps:
            amount -= self.amounts[step]
            if amount <= 0:
                return _end_ms(step) - now_ms
        raise AssertionError("no more than is taken can expire")

    def level(self, limit: int, now_ms: int) -> Level:
        newest = next((step for step in reversed(self.steps) if self.amounts[step]), None)
        reset_ms = 0 if newest is None else _end_ms(newest) - now_ms
        return Level(limit, max(limit - self.total, 0), reset_ms)


def _end_ms(step: int) -> int:
    """When a step no longer counts."""
    return (step + STEPS + 1) * STEP_MS


@dataclass(slots=True)
class _Counters:
    """All that is counted under one rule."""

    requests: _Window = field(default_factory=_Window)
    tokens: _Window = field(default_factory=_Window)
    running: dict[str, int] = field(default_factory=dict)  # when each lease ends, by job
    first_end_ms: int = 0  # no lease ends before

    def expire(self, now_ms: int) -> None:
        for window in (self.requests, self.tokens):
            window.expire(now_ms // STEP_MS)
        if now_ms < self.first_end_ms:  # leases are looked through now and then, not each time
            return
        self.running = {job: end_ms for job, end_ms in self.running.items() if end_ms > now_ms}
        # one that begins now ends no sooner
        self.first_end_ms = min(self.running.values(), default=now_ms + LEASE_MS)

    @property
    def is_empty(self) -> bool:
        return not (self.running or self.requests.steps or self.tokens.steps)


class InProcessLimiter:
    """A `Limiter` for one process and one event loop."""

    def __init__(self, clock_ms: Callable[[], int] | None = None) -> None:
        self._clock_ms = clock_ms or (lambda: time.monotonic_ns() // 1_000_000)
        self._counters: dict[str, _Counters] = {}
        self._open: set[str] = set()
        self._num_reserved = 0

    async def reserve(self, rules: Sequence[Rule], jobs: Mapping[str, int]) -> Grant | Refusal:
        now_ms = self._clock_ms()
        counters = [self._current(rule, now_ms) for rule in rules]
        refused = _worst(rules, counters, jobs, now_ms)
        if refused is not None:
            rule, dimension, retry_ms = refused
            return Refusal(rule, dimension, retry_ms, _states(rules, counters, now_ms))
        step = _step(counters, now_ms)
        for rule, counter in zip(rules, counters, strict=True):
            if rule.rates.requests_per_minute is not None:
                counter.requests.add(step, len(jobs))
            if rule.rates.tokens_per_minute is not None:
                counter.tokens.add(step, sum(jobs.values()))
            if rule.rates.max_running is not None:
                counter.running.update(dict.fromkeys(jobs, now_ms + LEASE_MS))
        self._open.update(jobs)
        self._sweep(now_ms)
        held = (Reservation(job, tokens, tuple(rules), step) for job, tokens in jobs.items())
        return Grant(tuple(held), _states(rules, counters, now_ms))

    async def settle(self, reservation: Reservation, num_tokens: int) -> None:
        self._give_back(reservation, 0, max(reservation.num_tokens - num_tokens, 0))

    async def cancel(self, reservation: Reservation) -> None:
        self._give_back(reservation, 1, reservation.num_tokens)

    async def renew(self, reservations: Collection[Reservation]) -> None:
        now_ms = self._clock_ms()
        for held in reservations:
            for rule in held.rules:
                if rule.rates.max_running is not None and held.id in self._open:
                    self._current(rule, now_ms).running[held.id] = now_ms + LEASE_MS

    async def peek(self, rules: Sequence[Rule]) -> tuple[RuleState, ...]:
        now_ms = self._clock_ms()
        counters = [self._counters.get(rule.key, _Counters()) for rule in rules]
        for counter in counters:
            counter.expire(now_ms)
        return _states(rules, counters, now_ms)

    async def close(self) -> None:
        pass  # nothing but memory

    def _current(self, rule: Rule, now_ms: int) -> _Counters:
        counters = self._counters.setdefault(rule.key, _Counters())
        counters.expire(now_ms)
        return counters

    def _give_back(self, held: Reservation, num_requests: int, num_tokens: int) -> None:
        if held.id not in self._open:
            return
        self._open.remove(held.id)
        for rule in held.rules:
            counters = self._counters.get(rule.key)
            if counters is None:
                continue
            if rule.rates.requests_per_minute is not None:
                counters.requests.refund(held.step, num_requests)
            if rule.rates.tokens_per_minute is not None:
                counters.tokens.refund(held.step, num_tokens)
            counters.running.pop(held.id, None)

    def _sweep(self, now_ms: int) -> None:
        self._num_reserved += 1
        if self._num_reserved % _SWEEP_EVERY:
            return
        for counters in self._counters.values():
            counters.expire(now_ms)
        self._counters = {
            key: counters for key, counters in self._counters.items() if not counters.is_empty
        }


def _worst(
    rules: Sequence[Rule], counters: Sequence[_Counters], jobs: Mapping[str, int], now_ms: int
) -> tuple[Rule, Dimension, int | None] | None:
    """The limit that must be waited for longest, None where all have room."""
    found: list[tuple[Rule, Dimension, int | None]] = []
    for rule, counter in zip(rules, counters, strict=True):
        rates = rule.rates
        wanted: tuple[tuple[Dimension, int | None, _Window, int], ...] = (
            ("requests", rates.requests_per_minute, counter.requests, len(jobs)),
            ("tokens", rates.tokens_per_minute, counter.tokens, sum(jobs.values())),
        )
        for dimension, limit, window, amount in wanted:
            if limit is None or window.total + amount <= limit:
                continue
            excess = window.total + amount - limit
            retry_ms = None if amount > limit else window.free_in_ms(excess, now_ms)
            found.append((rule, dimension, retry_ms))
        if rates.max_running is not None and len(counter.running) + len(jobs) > rates.max_running:
            never = len(jobs) > rates.max_running
            found.append((rule, "running", None if never else RUNNING_RETRY_MS))
    # None first: it never has room
    return max(found, key=lambda item: float("inf") if item[2] is None else item[2], default=None)


def _step(counters: Sequence[_Counters], now_ms: int) -> int:
    """The step that a reservation counts in: never before one that has begun."""
    newest = [w.steps[-1] for c in counters for w in (c.requests, c.tokens) if w.steps]
    return max([now_ms // STEP_MS, *newest])


def _states(
    rules: Sequence[Rule], counters: Sequence[_Counters], now_ms: int
) -> tuple[RuleState, ...]:
    return tuple(
        RuleState(
            None
            if (limit := rule.rates.requests_per_minute) is None
            else counter.requests.level(limit, now_ms),
            None
            if (limit := rule.rates.tokens_per_minute) is None
            else counter.tokens.level(limit, now_ms),
        )
        for rule, counter in zip(rules, counters, strict=True)
    )
