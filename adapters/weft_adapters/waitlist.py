"""Adapters that found no room on the device: who has waited longest is the first.

Not thread-safe: the tiers hold their lock around every call. Times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from weft_adapters.states import Entry

# what waits so long, and is still asked for, has others drained
_PATIENCE_S = 2.0
_WANTED_S = 5.0


class Waitlist:
    """`entries` are the tiers' own: `blocked_since_s` is when somebody first found no room for the
    adapter, None while nobody waits for it."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._digests: list[str] = []

    def __contains__(self, digest: object) -> bool:
        return digest in self._digests

    def __bool__(self) -> bool:
        return bool(self._digests)

    def add(self, digest: str, num_bytes: int, now: float) -> None:
        """It needs so many bytes, which were not there."""
        entry = self._entries[digest]
        entry.num_bytes_needed = num_bytes
        if now - entry.requested_s > _WANTED_S:
            entry.blocked_since_s = None  # a hint, or nobody waits any more
        elif entry.blocked_since_s is None:
            entry.blocked_since_s = now
        self._digests.append(digest)
        self._digests.sort(key=self._since)

    def ask(self, digest: str, now: float) -> None:
        """Somebody waits for it, if nobody did."""
        entry = self._entries[digest]
        if digest in self._digests and entry.blocked_since_s is None:
            entry.blocked_since_s = now
            self._digests.sort(key=self._since)

    def take(self, room: int) -> list[str]:
        """Remove and return who is to be tried again: the first, for which others may have to be
        drained, and those that there is room for beside it."""
        taken: list[str] = []
        for digest in self._digests:
            num_bytes = self._entries[digest].num_bytes_needed
            if not taken or num_bytes <= room:
                taken.append(digest)
                room -= num_bytes
        self._digests = [digest for digest in self._digests if digest not in taken]
        return taken

    def num_bytes_due(self, now: float) -> int:
        """What the first needs when it has waited so long that it gets the next room; else 0."""
        due = self._due(now)
        return 0 if due is None else self._entries[due].num_bytes_needed

    def is_before(self, digest: str, now: float) -> bool:
        """The next room is for one that has waited for longer than `digest`."""
        due = self._due(now)
        return due is not None and self._since(due) < self._since(digest)

    def _due(self, now: float) -> str | None:
        first = self._digests[0] if self._digests else None
        return first if first is not None and now - self._since(first) > _PATIENCE_S else None

    def _since(self, digest: str) -> float:
        since = self._entries[digest].blocked_since_s
        return math.inf if since is None else since
