"""Adapters that found no room on the device: who has waited longest is the first.

Not thread-safe: the tiers hold their lock around every call. Times are monotonic seconds, sizes
bytes of the device.
"""

from __future__ import annotations

# who has waited so long for room has others drained, and gets the next
_PATIENCE_S = 0.1
_LONGEST_TURN_S = 2.0
# who waits for a first token is taken to have waited so much longer than who goes on with an answer
_HEAD_START_S = 3.0


class Waitlist:
    """`add` who found no room, `take` whom to try again; a wait goes on until it is `end`ed.

    `slowest_load_s` is what one of their loads may take: where that is long, turns are.
    """

    def __init__(self) -> None:
        self.slowest_load_s = 0.0
        self._since: dict[str, float] = {}
        self._num_bytes: dict[str, int] = {}
        self._tried: set[str] = set()  # taken, and neither ended nor added again

    def __contains__(self, digest: object) -> bool:
        """It waits, and is not being tried again just now."""
        return digest in self._num_bytes and digest not in self._tried

    def __bool__(self) -> bool:
        return len(self._num_bytes) > len(self._tried)

    def add(self, digest: str, num_bytes: int, now: float, *, is_new: bool = False) -> None:
        """It needs so many bytes, which were not there; 0 where nobody knows yet. `is_new`: for a
        request that has not been started."""
        self._since.setdefault(digest, now - _HEAD_START_S if is_new else now)
        self._num_bytes[digest] = num_bytes
        self._tried.discard(digest)

    def end(self, digest: str) -> None:
        """It waits no more: it is there, cannot be loaded, or nobody asks for it."""
        self._since.pop(digest, None)
        self._num_bytes.pop(digest, None)
        self._tried.discard(digest)

    def set_aside(self, digest: str) -> None:
        """It has to be fetched first, and keeps nobody waiting meanwhile; it keeps its place."""
        self._num_bytes.pop(digest, None)
        self._tried.discard(digest)

    def take(self, room: int) -> list[str]:
        """Whom to try again: the first, for which others may have to be drained, and those that
        there is room for beside it."""
        taken: list[str] = []
        for digest in sorted(self._num_bytes.keys() - self._tried, key=self._since.__getitem__):
            num_bytes = self._num_bytes[digest]
            if not taken or num_bytes <= room:
                taken.append(digest)
                room -= num_bytes
        self._tried.update(taken)
        return taken

    @property
    def turn_s(self) -> float:
        """What each waits for its turn, and has for it: ten times a load at least, so that loads
        are a small part of all turns."""
        return max(_PATIENCE_S, min(10 * self.slowest_load_s, _LONGEST_TURN_S))

    def seconds_until_due(self, now: float) -> float | None:
        """None where nobody waits, or somebody is due."""
        first = min(self._num_bytes, key=self._since.__getitem__, default=None)
        if first is None or self.due(now) is not None:
            return None
        return self._since[first] + self.turn_s - now

    def due(self, now: float) -> str | None:
        """The first, once it has waited so long that it gets the next room."""
        first = min(self._num_bytes, key=self._since.__getitem__, default=None)
        if first is None or now - self._since[first] < self.turn_s:
            return None
        return first

    def num_bytes_due(self, now: float) -> int:
        """What that one needs; else 0."""
        due = self.due(now)
        return 0 if due is None else self._num_bytes[due]

    def is_before(self, digest: str, now: float) -> bool:
        """The next room is for one that has waited for longer than `digest`."""
        due = self.due(now)
        return due is not None and self._since[due] < self._since.get(digest, now)
