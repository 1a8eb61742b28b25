"""The device tier: who is on the device, who has to leave it, and who may.

Not thread-safe: the tiers hold their lock around every call. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft_adapters.load_times import LoadTimes
from weft_adapters.policy import EvictionPolicy, LruPolicy, Pins, Resident, choose_victims
from weft_adapters.pool import PagePool
from weft_adapters.states import AdapterState, Entry


class DeviceTier:
    """The entries whose pages the pool holds.

    An adapter is idle when nobody uses it and nobody was just promised it. One that drains gives
    out no more references, and goes on draining when it has become idle, until it makes room or
    nobody needs that any more. `loads` are the times of copies to the device.
    """

    def __init__(
        self, pool: PagePool, policy: EvictionPolicy | None = None, pins: Pins | None = None
    ) -> None:
        self._pool = pool
        self.policy = LruPolicy() if policy is None else policy
        self._pins = Pins() if pins is None else pins
        self.loads = LoadTimes(latency_s=1e-4, bytes_per_s=1e10)
        self._entries: dict[str, Entry] = {}
        self._turns: Mapping[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, digest: object) -> bool:
        return digest in self._entries

    def add(self, digest: str, entry: Entry) -> None:
        self._entries[digest] = entry

    @property
    def num_free_bytes(self) -> int:
        return self._pool.num_free_bytes

    def expect(self, digests: Sequence[str]) -> None:
        """Requests wait for these, the next one's first: of those that may go, they go last."""
        self._turns = {digest: turn for turn, digest in enumerate(digests)}

    def room(self, now: float) -> int:
        """Bytes that are free, or idle adapters'."""
        return self._pool.num_free_bytes + sum(r.num_bytes for r in self._idle(now))

    def _free_to_go(self) -> list[Resident]:
        """Those that no pin holds; who uses them does not matter."""
        residents = [
            Resident(digest, size, entry.last_used_s, self.loads.estimate(size))
            for digest, entry in self._entries.items()
            for size in (_num_bytes(entry),)
        ]
        return self._pins.free_to_go(residents, self._pool.num_bytes)

    def _idle(self, now: float) -> list[Resident]:
        return [
            resident
            for resident in self._free_to_go()
            for entry in (self._entries[resident.digest],)
            if entry.num_references == 0 and entry.awaited_until_s <= now
        ]

    @property
    def draining(self) -> frozenset[str]:
        return frozenset(digest for digest, e in self._entries.items() if _is_draining(e))

    def drain(self, num_bytes: int, turn_s: float, now: float) -> None:
        """Have those in use that came first drain until `num_bytes` are in sight; with 0, nobody.
        Each has had `turn_s` on the device by then.

        Idle ones count as room and stay open, so that nobody is kept from them while the others
        finish. One that is taken up meanwhile is in use, and will drain in its turn.
        """
        if num_bytes == 0:
            for entry in self._entries.values():
                entry.state = AdapterState.DEVICE
            return
        entries = [self._entries[resident.digest] for resident in self._free_to_go()]
        used = [entry for entry in entries if entry.num_references > 0]
        in_sight = self.room(now) + sum(_num_bytes(e) for e in used if _is_draining(e))
        for entry in sorted(used, key=lambda entry: entry.loaded_s):
            has_had_turn = entry.loaded_s + turn_s <= now
            if in_sight < num_bytes and has_had_turn and not _is_draining(entry):
                entry.state = AdapterState.DRAINING
                in_sight += _num_bytes(entry)

    def victims(self, num_bytes: int, now: float) -> list[str]:
        """Idle adapters that could make room for `num_bytes`, the first to go first: those that
        drain, then as the policy ranks them, those that are waited for last. None where all that
        are idle would not suffice."""
        idle = self._idle(now)
        if not idle or self.room(now) < num_bytes:
            return []
        ranked = sorted(self.policy.rank(idle, now), key=self._claim)  # stable
        # where free bytes suffice and are not enough, they lie in holes
        chosen = choose_victims(ranked, num_bytes - self._pool.num_free_bytes) or ranked[:1]
        return [resident.digest for resident in chosen]

    def _claim(self, resident: Resident) -> int:
        if _is_draining(self._entries[resident.digest]):
            return -1
        turn = self._turns.get(resident.digest)
        return 0 if turn is None else len(self._turns) - turn

    def evict_one(self, num_bytes: int, now: float) -> str | None:
        """Free the pages of the first of the `victims`."""
        victims = self.victims(num_bytes, now)
        if not victims:
            return None
        self.evict(victims[0])
        return victims[0]

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
