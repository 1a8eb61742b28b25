"""What the tiers know: every version here, who waits for room, and what is at hand.

Plain bookkeeping: no files, no copies, no threads. `lock` guards all of it, also the tiers that it
is made of, and is notified when there may be something to do; every method needs it held.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from weft_adapters.device import DeviceTier
from weft_adapters.fetch import Source
from weft_adapters.host import HostTier, Weights
from weft_adapters.policy import Pins, create_policy
from weft_adapters.pool import PagePool
from weft_adapters.popularity import Popularity
from weft_adapters.states import AdapterState, Entry
from weft_adapters.waitlist import Waitlist

# who found no room is tried again for so long after the last request for it
_WANTED_S = 5.0
# the most popular adapters, of which one may be brought before it is asked for
MAX_LOOKED_AT = 256


class TierTable:
    """Shared by the engine's side of the tiers and their threads. `queue` is what the loader does
    next; what has to be fetched or read before is `arrive`'s. `on_lack(num_bytes, has_to_wait)` is
    called where an adapter of that size finds no free room, and has to wait for it or not."""

    def __init__(
        self,
        source: Source,
        pool: PagePool,
        host_budget_bytes: int,
        arrive: Callable[[str, Entry], None],
        policy: str = "lru",
    ) -> None:
        self.lock = threading.Condition()
        self.entries: dict[str, Entry] = {}
        self.pins = Pins()
        self.popularity = Popularity()
        self.device = DeviceTier(pool, create_policy(policy, self.popularity), self.pins)
        self.host = HostTier(host_budget_bytes, create_policy(policy), self.pins)
        self.queue: deque[str] = deque()
        self.blocked = Waitlist()
        self.leaving: frozenset[str] = frozenset()
        self.is_closing = False
        self.on_lack: Callable[[int, bool], None] = lambda num_bytes, has_to_wait: None
        self._source, self._arrive = source, arrive

    # ---- states ----

    def place_at_rest(self, digest: str) -> AdapterState:
        """Where a version is for which nothing is done."""
        if digest in self.host:
            return AdapterState.HOST
        return AdapterState.DISK if self._source.is_on_disk(digest) else AdapterState.ABSENT

    def rest(self, digest: str, entry: Entry) -> None:
        """Nothing more is done for it; unless it is in host memory or somebody asks for it, it is
        forgotten."""
        entry.state = self.place_at_rest(digest)
        is_awaited = not entry.is_idle or digest in self.blocked
        if entry.state is not AdapterState.HOST and not is_awaited:
            del self.entries[digest]

    def enqueue(self, digest: str, entry: Entry) -> None:
        """Have it brought to the device, by way of host memory."""
        if digest in self.host or entry.in_hand is not None:
            entry.is_queued = True
            self.queue.append(digest)
            self.lock.notify_all()
        else:
            self._arrive(digest, entry)

    def keep_on_host(self, digest: str, weights: Weights, load_s: float) -> None:
        for evicted in self.host.put(digest, weights, load_s):
            entry = self.entries.get(evicted)
            if entry is not None and entry.state is AdapterState.HOST:
                self.rest(evicted, entry)

    def fail(self, digest: str, error: Exception) -> None:
        entry = self.entries[digest]
        entry.state, entry.failure = AdapterState.FAILED, error
        entry.failed_s = time.monotonic()
        entry.workers = entry.in_hand = None
        self.blocked.end(digest)
        self.update_draining()

    def note_request(self, digest: str) -> None:
        """Tell the tiers that it comes down to."""
        now = time.monotonic()
        self.device.policy.record(digest, now)
        if digest not in self.device:
            self.host.policy.record(digest, now)
            if digest not in self.host:
                self._source.note_request(digest)

    # ---- room on the device ----

    def block(self, digest: str, num_bytes: int) -> None:
        """Have it tried again when there may be room, as long as anybody asks for it."""
        entry = self.entries[digest]
        if self.is_wanted(entry):
            entry.state = self.place_at_rest(digest)
            self.blocked.add(digest, num_bytes, time.monotonic(), is_new=entry.is_new)
            self.blocked.slowest_load_s = self.device.loads.estimate(num_bytes)
        else:
            self.blocked.end(digest)
            self.rest(digest, entry)
        self.update_draining()

    @staticmethod
    def is_wanted(entry: Entry) -> bool:
        """Somebody has just asked for it."""
        return time.monotonic() - entry.requested_s <= _WANTED_S

    def update_draining(self) -> None:
        """Have others drained for who is due for room."""
        now = time.monotonic()
        self.device.drain(self.blocked.num_bytes_due(now), self.blocked.turn_s, now)
        self.leaving = self.device.draining

    def has_to_wait(self, digest: str) -> bool:
        """The next room is for another one, that has waited for longer."""
        return self.blocked.is_before(digest, time.monotonic())

    def has_room_due(self) -> bool:
        """Who is due for the next room would find it, and is not being tried already: it must not
        be overtaken by the one that is due after it."""
        now = time.monotonic()
        has_room = 0 < self.blocked.num_bytes_due(now) <= self.device.room(now)
        return has_room and self.blocked.due(now) in self.blocked

    def retry(self) -> None:
        """Put those that may find room now before the newcomers."""
        digests = self.blocked.take(self.device.room(time.monotonic()))
        for digest in digests:
            self.entries[digest].is_queued = True
        self.queue.extendleft(reversed(digests))

    def look_ahead(self, num_bytes_of: Callable[[Weights], int]) -> str | None:
        """Of the adapters that are asked for most, one in host memory that has room on the device,
        or is asked for more than twice as much as each that would have to go; None without one."""
        now = time.monotonic()
        digests = self.popularity.top(MAX_LOOKED_AT, now)
        popularity = dict(zip(digests, self.popularity.of(digests, now), strict=True))
        for digest in digests:
            weights, entry = self.host.get(digest), self.entries.get(digest)
            if weights is None or entry is None or not entry.is_idle or digest in self.blocked:
                continue
            num_bytes = num_bytes_of(weights)
            if num_bytes <= self.device.num_free_bytes:
                return digest
            victims = self.device.victims(num_bytes, now)
            worth = [popularity.get(victim, 0.0) for victim in victims]
            return digest if worth and popularity[digest] > 2 * max(worth) else None
        return None

    def evict_one(self, num_bytes: int) -> bool:
        """Make some room on the device; False where all that is idle would not make enough."""
        digest = self.device.evict_one(num_bytes, time.monotonic())
        if digest is None:
            return False
        self._leave_device(digest)
        return True

    def unload(self, digest: str) -> None:
        """Have it leave host memory, and the device when nobody uses it any more."""
        self.host.drop(digest)
        entry = self.entries.get(digest)
        if entry is None:
            return
        if entry.pooled is not None:
            entry.is_unloading = True
            self.lock.notify_all()
        elif entry.is_idle and digest not in self.blocked:
            self.rest(digest, entry)

    def evict_unloading(self) -> None:
        for digest in self.device.unloading():
            self.device.evict(digest)
            self._leave_device(digest)

    def _leave_device(self, digest: str) -> None:
        entry = self.entries[digest]
        entry.pooled, entry.is_unloading = None, False
        self.rest(digest, entry)

    def integrity(self) -> None:
        """AssertionError when states, references or pages contradict each other."""
        num_pooled = sum(entry.pooled is not None for entry in self.entries.values())
        assert num_pooled == len(self.device), "who is on the device is miscounted"
        for digest, entry in self.entries.items():
            assert entry.num_references >= 0, f"{digest} has negative references"
            is_there = entry.state in (AdapterState.DEVICE, AdapterState.DRAINING)
            assert (entry.pooled is not None) == is_there, (
                f"{digest} is {entry.state} but its pages say otherwise"
            )
            assert entry.num_references == 0 or entry.pooled is not None, (
                f"{digest} is in use but not on the device"
            )
            assert entry.is_queued == (digest in self.queue), f"{digest} is queued by mistake"
        self.host.integrity()
