"""The device tier: who is on the device, who has to leave it, and who may.

Not thread-safe: the tiers hold their lock around every call. Times are monotonic seconds.
"""

from __future__ import annotations

from weft_adapters.pool import PagePool
from weft_adapters.states import AdapterState, Entry


class DeviceTier:
    """The entries whose pages the pool holds.

    An adapter is idle when nobody uses it and nobody was just promised it. One that drains gives
    out no more references, and goes on draining when it has become idle, until it makes room or
    nobody needs that any more.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, digest: str, entry: Entry) -> None:
        self._entries[digest] = entry

    def room(self, now: float) -> int:
        """Bytes that are free, or idle adapters'."""
        return self._pool.num_free_bytes + sum(_num_bytes(e) for e in self._idle(now).values())

    def _idle(self, now: float) -> dict[str, Entry]:
        return {
            digest: entry
            for digest, entry in self._entries.items()
            if entry.num_references == 0 and entry.awaited_until_s <= now
        }

    def drain(self, num_bytes: int, now: float) -> None:
        """Have those in use that came first drain until `num_bytes` are in sight; with 0, nobody.

        Idle ones count as room and stay open, so that nobody is kept from them while the others
        finish. One that is taken up meanwhile is in use, and will drain in its turn.
        """
        if num_bytes == 0:
            for entry in self._entries.values():
                entry.state = AdapterState.DEVICE
            return
        used = [entry for entry in self._entries.values() if entry.num_references > 0]
        in_sight = self.room(now) + sum(_num_bytes(e) for e in used if _is_draining(e))
        for entry in sorted(used, key=lambda entry: entry.loaded_s):
            if in_sight < num_bytes and not _is_draining(entry):
                entry.state = AdapterState.DRAINING
                in_sight += _num_bytes(entry)

    def evict_one(self, num_bytes: int, now: float) -> str | None:
        """Free the pages of an idle adapter: one that drains, else the least recently used. None
        where all that are idle would not make room for `num_bytes`."""
        idle = self._idle(now)
        if not idle or self.room(now) < num_bytes:
            return None
        digest = min(idle, key=lambda d: (not _is_draining(idle[d]), idle[d].last_used_s))
        self.evict(digest)
        return digest

    def evict(self, digest: str) -> None:
        """Free the pages of an adapter that nobody uses."""
        del self._entries[digest]
        self._pool.free(digest)

    def unloading(self) -> list[str]:
        """Those that are to go and that nobody uses any more."""
        entries = self._entries.items()
        return [d for d, entry in entries if entry.is_unloading and entry.num_references == 0]


def _num_bytes(entry: Entry) -> int:
    return 0 if entry.pooled is None else entry.pooled.num_bytes


def _is_draining(entry: Entry) -> bool:
    return entry.state is AdapterState.DRAINING
