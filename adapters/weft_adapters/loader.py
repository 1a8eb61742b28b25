"""The one thread that brings adapters from host memory to the device."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from weft_adapters.arrivals import Arrivals
from weft_adapters.host import Weights
from weft_adapters.pace import Pace
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.states import AdapterState
from weft_adapters.table import TierTable

# an adapter that was just loaded for a waiting request is not evicted before that request can run
_GRACE_S = 5.0
_RETRY_S = 0.25
# so often is looked, when there is nothing to do, for who may be asked for next
_LOOK_AHEAD_S = 1.0
# kept for whoever asks for them
_MAX_LOAD_TIMES = 10_000


class AdapterTooLargeError(ValueError):
    """The adapter needs more device memory than the whole pool has."""


class Loader:
    """Works off the table's queue until the table is closing; `tell` after each that arrived.

    `load_times_s`: how long those took since they were asked for; to be emptied by who reads it.
    """

    def __init__(
        self,
        table: TierTable,
        arrivals: Arrivals,
        pool: PagePool,
        pace: Pace,
        tell: Callable[[], None],
    ) -> None:
        self._table, self._arrivals, self._pool = table, arrivals, pool
        self._pace, self._tell = pace, tell
        self.load_times_s: deque[float] = deque(maxlen=_MAX_LOAD_TIMES)
        self._thread = threading.Thread(target=self._run, name="weft-adapter-loader", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while (digest := self._next()) is not None:
            try:
                if self._bring(digest):
                    self._tell()
            except Exception as error:  # whatever is wrong with one adapter is its own failure
                self._arrivals.fail(digest, error)

    def _next(self) -> str | None:
        table = self._table
        with table.lock:
            while not table.is_closing:
                table.evict_unloading()
                if table.has_room_due():
                    table.retry()
                if table.queue:
                    digest = table.queue.popleft()
                    entry = table.entries[digest]
                    is_at_hand = entry.in_hand is not None or digest in table.host
                    # from here on no longer idle to a request
                    entry.state = AdapterState.LOADING if is_at_hand else AdapterState.FETCHING
                    entry.is_queued = False
                    return digest
                self._wait()
            return None

    def _wait(self) -> None:
        """For something to do; where some wait for room, a release or the clock will make it. The
        caller holds the lock."""
        table = self._table
        if table.blocked:
            until_due_s = table.blocked.seconds_until_due(time.monotonic())
            retry_s = min(_RETRY_S, table.blocked.turn_s)
            table.lock.wait(retry_s if until_due_s is None else min(_RETRY_S, until_due_s))
            if table.blocked and not table.queue:
                table.retry()
            return
        table.lock.wait(_LOOK_AHEAD_S)
        if not table.queue and not table.blocked:
            digest = table.look_ahead(self._pool.num_bytes_needed)
            if digest is not None:
                entry = table.entries[digest]
                entry.began_s = time.monotonic()
                table.enqueue(digest, entry)

    def _bring(self, digest: str) -> bool:
        """Host to device; False when the device has no room yet, or it has to be fetched again."""
        table = self._table
        with table.lock:
            entry = table.entries[digest]
            on_host = table.host.use(digest)
            weights = entry.in_hand if on_host is None else on_host
            entry.in_hand = None
            table.lock.notify_all()  # the reader goes on
            has_to_wait = table.has_to_wait(digest)
        if weights is None:
            # it waited for room, and host memory had none for it meanwhile
            if has_to_wait:
                return self._block(digest, 0)  # and need not be read before its turn
            weights = self._try_read(digest)
            if weights is None:
                return False
        num_bytes = self._pool.num_bytes_needed(weights)
        if num_bytes > self._pool.max_bytes:
            raise AdapterTooLargeError(
                f"the adapter needs {num_bytes} bytes of device memory, "
                f"the pool has {self._pool.max_bytes}"
            )
        if has_to_wait:
            return self._block(digest, num_bytes)
        while (pooled := self._try_load(digest, weights, num_bytes)) is None:
            with table.lock:
                has_evicted = table.evict_one(num_bytes)
                table.on_lack(num_bytes, not has_evicted)
            if not has_evicted:
                # free bytes that do not suffice lie in holes: one more has to go
                return self._block(digest, max(num_bytes, self._pool.num_free_bytes + 1))
        with table.lock:
            table.device.add(digest, entry)
            table.blocked.end(digest)
            entry.pooled, entry.state = pooled, AdapterState.DEVICE
            entry.loaded_s = entry.last_used_s = time.monotonic()
            self.load_times_s.append(entry.loaded_s - entry.began_s)
            entry.began_s = 0.0
            if table.is_wanted(entry):
                entry.awaited_until_s = entry.last_used_s + _GRACE_S
            table.update_draining()
        return True

    def _try_read(self, digest: str) -> Weights | None:
        """Read it here and now, so that no newcomer overtakes it; None when it has to be fetched
        before."""
        table = self._table
        with table.lock:
            if not self._arrivals.is_here(digest):
                table.blocked.set_aside(digest)
                self._arrivals.add(digest, table.entries[digest])
                return None
        weights = self._arrivals.try_read(digest)
        with table.lock:
            entry = table.entries[digest]
            if weights is None:
                table.blocked.set_aside(digest)
                self._arrivals.add(digest, entry)
            else:
                entry.state = AdapterState.LOADING
        return weights

    def _try_load(self, digest: str, weights: Weights, num_bytes: int) -> PooledAdapter | None:
        """To try in vain is dear: each site is given its place first."""
        if self._pool.num_free_bytes < num_bytes:
            return None
        started_s = time.monotonic()
        with self._pace.span("copy", digest):
            pooled = self._pool.try_load(digest, weights, self._pace.pause_copy)
        if pooled is not None:
            with self._table.lock:
                self._table.device.loads.record(num_bytes, time.monotonic() - started_s)
        return pooled

    def _block(self, digest: str, num_bytes: int) -> bool:
        with self._table.lock:
            self._table.block(digest, num_bytes)
        return False
