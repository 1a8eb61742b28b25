"""What a limiter does, whichever keeps the counts: this process or a Redis that several share.

Rates are exact: no 60 seconds see more requests or tokens of a subject than its limit, to a tenth
of a second on the safe side. (A bucket that refills lets twice the limit through in the first
minute, a fixed window in the minute around its edge.) Counts are kept in steps of 100 ms, so a
refund goes back to the very step that it was taken from, and memory is bounded by 601 steps.

Running requests are leases, not a count: a holder that dies stops renewing, and its places are free
again when the lease is over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from weft.limits.subjects import Subject

WINDOW_MS = 60_000
STEP_MS = 100
# an amount counts in its own step and in this many after it: over a window since its step's end
STEPS = WINDOW_MS // STEP_MS
LEASE_MS = 30_000
RENEW_INTERVAL_S = LEASE_MS / 3000

Dimension = Literal["requests", "tokens", "running"]


@dataclass(frozen=True, slots=True)
class Rates:
    """Limits of one subject on its requests; None: none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_running: int | None = None

    @property
    def is_empty(self) -> bool:
        return self.requests_per_minute is self.tokens_per_minute is self.max_running is None

    def over(self, defaults: Rates) -> Rates:
        """These limits, and where there is none the default."""
        return Rates(
            *(
                default if own is None else own
                for own, default in (
                    (self.requests_per_minute, defaults.requests_per_minute),
                    (self.tokens_per_minute, defaults.tokens_per_minute),
                    (self.max_running, defaults.max_running),
                )
            )
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A subject's rates; with a `model`, those of its requests to that model."""

    subject: Subject
    rates: Rates
    model: str = ""

    @property
    def key(self) -> str:
        """Under which it is counted; a change of the rates goes on counting."""
        return f"{self.subject.kind}:{self.subject.id}:{self.model}"


@dataclass(frozen=True, slots=True)
class Level:
    """What is left of a rate, and after how long all of it is there again."""

    limit: int
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class RuleState:
    """A rule's levels; None where it has no such limit."""

    requests: Level | None = None
    tokens: Level | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """One engine request's place under its rules: settle or cancel it exactly once."""

    id: str
    num_tokens: int
    rules: tuple[Rule, ...]
    step: int

    @property
    def is_leased(self) -> bool:
        """Whether it has a place among the running that it loses unless it is renewed."""
        return any(rule.rates.max_running is not None for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Grant:
    """Reservations in the order of the jobs, and the rules' states with them taken."""

    reservations: tuple[Reservation, ...]
    states: tuple[RuleState, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was reserved. `retry_after_ms` is when what binds most has room again as far as
    can be told, None where the limit itself is too small for the request."""

    rule: Rule
    dimension: Dimension
    retry_after_ms: int | None
    states: tuple[RuleState, ...]


class LimiterUnavailableError(Exception):
    """The counts cannot be reached; what that means is decided where a limiter is called."""


class Limiter(Protocol):
    """Counts requests under rules. Every method is atomic, for all who share the counts."""

    async def reserve(self, rules: Sequence[Rule], jobs: Mapping[str, int]) -> Grant | Refusal:
        """One request, its highest number of tokens and one place for each job (tokens by unique
        id), under all rules; or nothing at all."""
        ...

    async def settle(self, reservation: Reservation, num_tokens: int) -> None:
        """The job is over and took `num_tokens`: give back the others and the place. Once more
        changes nothing."""
        ...

    async def cancel(self, reservation: Reservation) -> None:
        """The job never ran: give everything back. Once more changes nothing."""
        ...

    async def renew(self, reservations: Collection[Reservation]) -> None:
        """Their holder lives: lengthen the leases."""
        ...

    async def peek(self, rules: Sequence[Rule]) -> tuple[RuleState, ...]:
        """The rules' states; takes nothing."""
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...
