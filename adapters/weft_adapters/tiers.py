"""Adapters on their way between store, host memory and device, beside the engine's step.

    absent -> fetching -> host -> loading -> device -> draining     (failed: see `failure`)

Callers of `request`, `acquire` and `release` never wait: a thread of ours reads, verifies and
copies. An adapter with references stays where it is; among the others the least recently used one
makes room. Who finds none waits for it; where all are in use without a pause, those that came first
give out no more references until the one that has waited longest has had its turn. The digest is
verified against the bytes each time they enter host memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from weft_adapters.device import DeviceTier
from weft_adapters.host import HostTier, Weights
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.sites import BaseSpec
from weft_adapters.source import load_verified
from weft_adapters.states import AdapterState, Entry
from weft_adapters.store import AdapterNotStoredError, AdapterStore
from weft_adapters.waitlist import Waitlist

logger = logging.getLogger("weft.adapters")

# an adapter that was just loaded for a waiting request is not evicted before that request can run
_GRACE_S = 5.0
_RETRY_S = 0.25
# who found no room is tried again for so long after the last request for it
_WANTED_S = 5.0


class AdapterTooLargeError(ValueError):
    """The adapter needs more device memory than the whole pool has."""


class AdapterUnreadableError(ValueError):
    """The server could not read the adapter; why is the operator's to know."""


class AdapterTiers:
    """The adapters of one replica. `on_change` is called by the loader's thread whenever an adapter
    has reached the device or failed."""

    def __init__(
        self,
        store: AdapterStore,
        base: BaseSpec,
        pool: PagePool,
        host_budget_bytes: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._base, self._pool = store, base, pool
        self._on_change = on_change
        self._entries: dict[str, Entry] = {}
        self._device = DeviceTier(pool)
        self._host = HostTier(host_budget_bytes)
        self._queue: deque[str] = deque()
        self._blocked = Waitlist()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="weft-adapter-loader", daemon=True)
        self._thread.start()

    # ---- for the engine; never blocks on I/O ----

    def request(self, digest: str) -> None:
        """Have the adapter brought to the device, unless it is there, on its way, or has just
        failed."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None or entry.is_stale_failure:
                entry = self._entries[digest] = Entry(AdapterState.ABSENT)
            entry.requested_s = time.monotonic()
            is_idle = entry.state in (AdapterState.ABSENT, AdapterState.HOST)
            if is_idle and digest not in self._queue and digest not in self._blocked:
                self._queue.append(digest)
                self._changed.notify_all()

    def acquire(self, digest: str) -> PooledAdapter | None:
        """Take a reference; None when the adapter is not on the device, or has to leave it."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None or entry.state is not AdapterState.DEVICE:
                return None
            entry.num_references += 1
            entry.last_used_s = time.monotonic()
            entry.awaited_until_s = 0.0
            return entry.pooled

    def release(self, digest: str) -> None:
        with self._changed:
            entry = self._entries[digest]
            assert entry.num_references > 0, "an adapter is released more often than acquired"
            entry.num_references -= 1
            entry.last_used_s = time.monotonic()
            if entry.num_references == 0 and self._blocked:
                self._changed.notify_all()

    def state(self, digest: str) -> AdapterState:
        with self._changed:
            entry = self._entries.get(digest)
            return AdapterState.ABSENT if entry is None else entry.state

    def states(self) -> dict[str, AdapterState]:
        with self._changed:
            return {digest: entry.state for digest, entry in self._entries.items()}

    def failure(self, digest: str) -> Exception | None:
        with self._changed:
            entry = self._entries.get(digest)
            return None if entry is None else entry.failure

    def forget(self, digest: str) -> None:
        """Let a failed adapter be tried again."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is not None and entry.state is AdapterState.FAILED:
                del self._entries[digest]

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    # ---- the loader's thread ----

    def _run(self) -> None:
        while (digest := self._next()) is not None:
            try:
                arrived = self._bring(digest)
            except Exception as error:  # whatever is wrong with one adapter is its own failure
                self._fail(digest, error)
                arrived = True
            if arrived:
                self._tell()

    def _tell(self) -> None:
        try:
            self._on_change()
        except Exception:  # the listener's fault must not end the loader
            logger.exception("the listener to adapter changes failed")

    def _next(self) -> str | None:
        with self._changed:
            while not self._closing:
                if self._has_room_due():
                    self._retry()
                if self._queue:
                    digest = self._queue.popleft()
                    is_on_host = digest in self._host
                    state = AdapterState.LOADING if is_on_host else AdapterState.FETCHING
                    self._entries[digest].state = state  # from here on no longer idle to `request`
                    return digest
                # where some wait for room, a release or the clock will make it
                self._changed.wait(_RETRY_S if self._blocked else None)
                if self._blocked and not self._queue:
                    self._retry()
            return None

    def _has_room_due(self) -> bool:
        """Who is due for the next room would find it. The caller holds the lock."""
        now = time.monotonic()
        return 0 < self._blocked.num_bytes_due(now) <= self._device.room(now)

    def _retry(self) -> None:
        """Put those that may find room now before the newcomers. The caller holds the lock."""
        self._queue.extendleft(reversed(self._blocked.take(self._device.room(time.monotonic()))))

    def _bring(self, digest: str) -> bool:
        """Store to host to device; False when the device has no room yet."""
        with self._changed:
            weights = self._host.use(digest)
            has_to_wait = self._blocked.is_before(digest, time.monotonic())
        if weights is None:
            if has_to_wait:
                return self._block(digest, 0)  # and need not be read before its turn
            weights = load_verified(self._store.open(digest), digest, self._base)
            self._keep_on_host(digest, weights)
        self._set_state(digest, AdapterState.LOADING)
        num_bytes = self._pool.num_bytes_needed(weights)
        if num_bytes > self._pool.num_bytes:
            raise AdapterTooLargeError(
                f"the adapter needs {num_bytes} bytes of device memory, "
                f"the pool has {self._pool.num_bytes}"
            )
        if has_to_wait:
            return self._block(digest, num_bytes)
        while (pooled := self._try_load(digest, weights, num_bytes)) is None:
            if not self._evict_one(num_bytes):
                # free bytes that do not suffice lie in holes: one more has to go
                return self._block(digest, max(num_bytes, self._pool.num_free_bytes + 1))
        with self._changed:
            entry = self._entries[digest]
            self._device.add(digest, entry)
            self._blocked.end(digest)
            entry.pooled, entry.state = pooled, AdapterState.DEVICE
            entry.loaded_s = entry.last_used_s = time.monotonic()
            entry.awaited_until_s = entry.last_used_s + _GRACE_S
            self._update_draining()
        return True

    def _try_load(self, digest: str, weights: Weights, num_bytes: int) -> PooledAdapter | None:
        """To try in vain is dear: each site is given its place first."""
        if self._pool.num_free_bytes < num_bytes:
            return None
        return self._pool.try_load(digest, weights)

    def _block(self, digest: str, num_bytes: int) -> bool:
        """Have it tried again when there may be room, as long as anybody asks for it; False."""
        now = time.monotonic()
        with self._changed:
            entry = self._entries[digest]
            is_on_host = digest in self._host
            entry.state = AdapterState.HOST if is_on_host else AdapterState.ABSENT
            if now - entry.requested_s <= _WANTED_S:
                self._blocked.add(digest, num_bytes, now)
            else:
                self._blocked.end(digest)
                if not is_on_host:
                    self._leave(digest)
            self._update_draining()
        return False

    def _update_draining(self) -> None:
        """Have others drained for who is due for room. The caller holds the lock."""
        now = time.monotonic()
        self._device.drain(self._blocked.num_bytes_due(now), now)

    def _set_state(self, digest: str, state: AdapterState) -> None:
        with self._changed:
            self._entries[digest].state = state

    def _fail(self, digest: str, error: Exception) -> None:
        logger.error("adapter %s could not be loaded", digest, exc_info=error)
        if not isinstance(error, ValueError | AdapterNotStoredError):
            # paths and devices are no business of the tenant that will read this
            error = AdapterUnreadableError("the server could not read its files")
        with self._changed:
            entry = self._entries[digest]
            entry.state, entry.failure = AdapterState.FAILED, error
            entry.failed_s = time.monotonic()
            self._blocked.end(digest)
            self._update_draining()

    def _evict_one(self, num_bytes: int) -> bool:
        with self._changed:
            digest = self._device.evict_one(num_bytes, time.monotonic())
            if digest is None:
                return False
            entry = self._entries[digest]
            entry.pooled, entry.state = None, AdapterState.HOST
            if digest not in self._host:
                self._leave(digest)
            return True

    def _keep_on_host(self, digest: str, weights: Weights) -> None:
        with self._changed:
            for evicted in self._host.put(digest, weights):
                entry = self._entries.get(evicted)
                if entry is not None and entry.state is AdapterState.HOST:
                    self._leave(evicted)

    def _leave(self, digest: str) -> None:
        """It is on neither tier any more: what nobody asks for is forgotten."""
        if digest in self._queue or digest in self._blocked:
            self._entries[digest].state = AdapterState.ABSENT
        else:
            del self._entries[digest]

    def integrity(self) -> None:
        """AssertionError when states, references or pages contradict each other."""
        self._pool.integrity()
        with self._changed:
            num_pooled = sum(entry.pooled is not None for entry in self._entries.values())
            assert num_pooled == len(self._device), "who is on the device is miscounted"
            for digest, entry in self._entries.items():
                assert entry.num_references >= 0, f"{digest} has negative references"
                is_there = entry.state in (AdapterState.DEVICE, AdapterState.DRAINING)
                assert (entry.pooled is not None) == is_there, (
                    f"{digest} is {entry.state} but its pages say otherwise"
                )
                assert entry.num_references == 0 or entry.pooled is not None, (
                    f"{digest} is in use but not on the device"
                )
            self._host.integrity()
