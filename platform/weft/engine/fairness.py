"""Virtual token counters: who has had the least service goes next (Sheng et al. 2024, "Fairness in
Serving Large Language Models").

Service is 1 x computed prompt tokens + 2 x answer tokens, divided by the holder's weight. Tokens
taken from the prefix cache or computed again after a preemption are not charged, nor answer tokens
that are computed and dropped. A holder that comes back after a pause is lifted to the least counter
of those that wait, so that a pause saves up nothing. The same counters order tenants, and the
adapters of one tenant.

Bound. Let R be the most sequences of one tenant that run at once, P and L the longest prompt and
answer, B the tokens of one step and w the smaller weight of two tenants. While both always have a
request waiting that could start (its adapter is on the device, a block and an adapter place are
free or can be had), their weighted service over any interval differs by at most

    2 (B + R (P + 2 L)) / w

plus what they were charged for loading adapters. Proof: take the last step at which the leader's
counter was not above the other's. In it the lead grows by at most that step's service, B prompt
tokens and 2 per running sequence. From then on the other is served first, and no request of the
leader is admitted before one of the other's that could run; what the leader still gets is what its
running requests have left, R (P + 2 L) at most. So neither counter is ever ahead by more than half
of the bound, and the service over an interval is the difference of two such leads.

A request at the head of its queue that finds no block or adapter place is overtaken meanwhile, for
`MAX_PASSED_OVER` steps at most (see `admission`); where blocks are that scarce the bound does not
hold for its tenant.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

PROMPT_TOKEN_COST = 1.0
ANSWER_TOKEN_COST = 2.0


Key = TypeVar("Key", bound=Hashable)


class VirtualCounters(Generic[Key]):
    """Weighted service by key. Keys that wait are `enter`ed; others are forgotten in time."""

    def __init__(self) -> None:
        self._values: dict[Key, float] = {}
        self._waiting: set[Key] = set()
        self._floor = 0.0  # nobody who enters starts below it

    def __getitem__(self, key: Key) -> float:
        return self._values.get(key, self._floor)

    def enter(self, key: Key) -> None:
        """`key` begins to wait: lift it to the least of those that wait already. Idempotent."""
        if key in self._waiting:
            return
        self._raise_floor()
        self._values[key] = max(self[key], self._floor)
        self._waiting.add(key)

    def leave(self, key: Key) -> None:
        """Nothing of `key` waits any more. Idempotent."""
        if key not in self._waiting:
            return
        self._raise_floor()
        self._waiting.remove(key)
        if not self._waiting:
            self._floor = max(self._floor, self._values[key])
        self._forget_the_lifted()

    def charge(self, key: Key, service: float) -> None:
        """Add weighted service."""
        self._values[key] = self[key] + service

    def _raise_floor(self) -> None:
        if self._waiting:
            self._floor = max(self._floor, min(self._values[key] for key in self._waiting))

    def _forget_the_lifted(self) -> None:
        """Those at or below the floor would be lifted to it anyway."""
        self._values = {
            key: value
            for key, value in self._values.items()
            if value > self._floor or key in self._waiting
        }

    @property
    def num_known(self) -> int:
        return len(self._values)
