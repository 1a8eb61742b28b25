"""Who keys stand for, remembered for two seconds: what is revoked here or elsewhere is so soon.

Entries are found by the SHA-256 of a key's whole text. Knows no database: it is handed the read.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from weft.tenancy.principal import Identity

# an identity, or why there is none
Outcome: TypeAlias = Identity | Literal["invalid", "suspended"]

# bounds how long another worker's change goes unnoticed
TTL_S = 2.0
# a key that was good within this time is looked up again although its address sends bad ones
KNOWN_S = 3600.0
MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class _Entry:
    outcome: Outcome
    read_at_s: float
    generation: int


class IdentityCache:
    """Used by one event loop. Identities and refusals are bounded each by itself, so that a flood
    of bad keys pushes no good one out."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._good: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bad: OrderedDict[bytes, _Entry] = OrderedDict()
        # reads under way, which other requests with the same key wait for as well
        self._reads: dict[tuple[bytes, int], asyncio.Task[Outcome]] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._good) + len(self._bad)

    def forget_all(self) -> None:
        """Something has changed: what was read before counts no more, nor what is being read."""
        self._generation += 1

    def find(self, digest: bytes) -> Outcome | None:
        """What is known and fresh."""
        entry = self._good.get(digest) or self._bad.get(digest)
        if entry is None or entry.generation != self._generation:
            return None
        return entry.outcome if self._clock() - entry.read_at_s < TTL_S else None

    def was_good(self, digest: bytes) -> bool:
        """Whether the key was right not long ago; no reason to let it in."""
        entry = self._good.get(digest)
        return entry is not None and self._clock() - entry.read_at_s < KNOWN_S

    async def read(self, digest: bytes, read: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """The outcome of `read`, or of one that began since the last change and is under way."""
        flight = (digest, self._generation)
        task = self._reads.get(flight)
        if task is None:
            task = asyncio.create_task(self._fill(digest, read, self._generation))
            self._reads[flight] = task
            task.add_done_callback(lambda done: self._landed(flight, done))
        # one request that is cancelled does not take the others' answer with it
        return await asyncio.shield(task)

    async def _fill(
        self, digest: bytes, read: Callable[[], Awaitable[Outcome]], generation: int
    ) -> Outcome:
        # as of before the read: what changes meanwhile may or may not be in its outcome
        started_s = self._clock()
        outcome = await read()
        if generation == self._generation:
            self._keep(digest, _Entry(outcome, started_s, generation))
        return outcome

    def _keep(self, digest: bytes, entry: _Entry) -> None:
        is_bad = isinstance(entry.outcome, str)
        (self._good if is_bad else self._bad).pop(digest, None)
        entries = self._bad if is_bad else self._good
        entries[digest] = entry
        entries.move_to_end(digest)
        if len(entries) > self._max_entries:
            entries.popitem(last=False)

    def _landed(self, flight: tuple[bytes, int], task: asyncio.Task[Outcome]) -> None:
        del self._reads[flight]
        if not task.cancelled():
            task.exception()  # retrieved, though everybody who waited may be gone
