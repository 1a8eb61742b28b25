"""Adapters on their way between store, disk, host memory and device, beside the engine's step.

    absent -> fetching -> host -> loading -> device -> draining     (failed: see `failure`)
    disk   ->

Callers of `request`, `acquire` and `release` never wait: threads of ours download (where the store
is remote), read and verify (see `arrivals`), and one copies to the device (see `loader`). An
adapter with references stays where it is; among the others the least recently used one makes room.
Who finds none waits for it; where all are in use without a pause, those that came first give out no
more references until the one that has waited longest has had its turn. The digest is verified
against the bytes each time they enter host memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from weft_adapters.arrivals import AdapterUnreadableError, Arrivals
from weft_adapters.base_weights import BaseWeights
from weft_adapters.exchange import BlockMemory, MemoryExchange
from weft_adapters.fetch import DownloadedSource, as_source
from weft_adapters.loader import AdapterTooLargeError, Loader
from weft_adapters.pace import Pace
from weft_adapters.pinned import pin
from weft_adapters.pool import PagePool, PooledAdapter
from weft_adapters.row_scales import RowScales
from weft_adapters.sites import BaseSpec
from weft_adapters.states import AdapterState, Entry, Placement
from weft_adapters.store import LocalStore
from weft_adapters.table import TierTable

__all__ = ["AdapterTiers", "AdapterTooLargeError", "AdapterUnreadableError"]

logger = logging.getLogger("weft.adapters")


class AdapterTiers:
    """The adapters of one replica. `on_change` is called by a thread of ours whenever an adapter
    has reached the device or failed. A source of downloads is closed with the tiers.

    base_weights: of the base as it is served, which adapters are read against; None where nobody
    serves it. row_scales: what was computed with them before.
    """

    def __init__(
        self,
        store: LocalStore | DownloadedSource,
        base: BaseSpec,
        pool: PagePool,
        host_budget_bytes: int,
        on_change: Callable[[], None] = lambda: None,
        *,
        base_weights: BaseWeights | None = None,
        policy: str = "cost",
        num_downloads: int = 8,
        num_readers: int = 1,
        row_scales: RowScales | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._pool, self._on_change = pool, on_change
        self.pace = Pace() if pace is None else pace
        self.num_changes = 0  # adapters that reached the device, or failed
        self._source = as_source(store)
        self._arrivals = Arrivals(
            self._source, base, base_weights, tell=self._tell, pace=self.pace,
            num_readers=num_readers,
            keep=pin if pool.device.type == "cuda" else lambda weights: weights,
            num_downloads=num_downloads if isinstance(store, DownloadedSource) else 0,
            row_scales=row_scales,
        )  # fmt: skip
        self._table = TierTable(self._source, pool, host_budget_bytes, self._arrivals.add, policy)
        self._arrivals.serve(self._table)
        self._loader = Loader(self._table, self._arrivals, pool, self.pace, self._tell)
        self.exchange: MemoryExchange | None = None

    def lend(self, memory: BlockMemory, min_adapter_bytes: int) -> MemoryExchange:
        """Have the pool, and whoever owns this memory of KV blocks, lend each other room from now
        on; the pool keeps `min_adapter_bytes`."""
        self.exchange = MemoryExchange(self._table, self._pool, memory, min_adapter_bytes)
        return self.exchange

    # ---- for the engine; never blocks on I/O ----

    def request(self, digest: str, tenant_id: str = "", *, is_new: bool = False) -> None:
        """Have the adapter brought to the device, unless it is there, on its way, or has just
        failed. Those that have to be fetched or read are, fairly between the tenants that ask.
        `is_new`: for a request that has just come; it may be called again and again for one."""
        table = self._table
        with table.lock:
            entry = table.entries.get(digest)
            if entry is None or entry.is_stale_failure:
                entry = table.entries[digest] = Entry(table.place_at_rest(digest))
            entry.requested_s = time.monotonic()
            entry.tenant_id = tenant_id or entry.tenant_id
            if is_new:
                entry.is_new = True
                table.note_request(digest)
            if entry.is_idle and digest not in table.blocked:
                entry.began_s = entry.began_s or entry.requested_s
                table.enqueue(digest, entry)

    def expect(self, digests: Sequence[str]) -> None:
        """Requests wait for these, the first one's first: what is on the device for them is let go
        last."""
        with self._table.lock:
            self._table.device.expect(digests)

    def pin(self, digest: str, is_pinned: bool = True) -> None:
        """Whether it stays on each tier that it is on, or reaches. Pins hold half of a tier at
        most."""
        with self._table.lock:
            self._table.pins.set(digest, is_pinned)
        self._source.pin(digest, is_pinned)

    @property
    def leaving(self) -> frozenset[str]:
        """Those in use that have to make room for one that has waited its time: the sooner their
        references are given back, the sooner they can come again. Takes no lock."""
        return self._table.leaving

    def withdraw(self, digest: str) -> None:
        """Nobody waits for the adapter any more: what has not been fetched yet is not."""
        with self._table.lock:
            entry = self._table.entries.get(digest)
            if entry is not None:
                self._arrivals.withdraw(digest, entry)

    def unload(self, digest: str) -> None:
        """Have the adapter leave host memory and, when the requests that use it have ended, the
        device; one that comes for it before keeps it there. A disk tier keeps what it has."""
        with self._table.lock:
            self._table.unload(digest)

    def discard(self, digest: str) -> None:
        """The store has it no more: have it leave the disk tier, too. May wait for files."""
        self.unload(digest)
        self._source.discard(digest)

    def acquire(self, digest: str) -> PooledAdapter | None:
        """Take a reference; None when the adapter is not on the device, or has to leave it."""
        with self._table.lock:
            entry = self._table.entries.get(digest)
            if entry is None or entry.state is not AdapterState.DEVICE:
                return None
            entry.num_references += 1
            entry.is_unloading = entry.is_new = False
            entry.last_used_s = time.monotonic()
            entry.awaited_until_s = 0.0
            return entry.pooled

    def release(self, digest: str) -> None:
        with self._table.lock:
            entry = self._table.entries[digest]
            assert entry.num_references > 0, "an adapter is released more often than acquired"
            entry.num_references -= 1
            entry.last_used_s = time.monotonic()
            if entry.num_references == 0 and (self._table.blocked or entry.is_unloading):
                self._table.lock.notify_all()

    def state(self, digest: str) -> AdapterState:
        with self._table.lock:
            entry = self._table.entries.get(digest)
            return self._table.place_at_rest(digest) if entry is None else entry.state

    def states(self) -> dict[str, AdapterState]:
        """Of all that are on a tier of this replica, or on their way."""
        on_disk = dict.fromkeys(self._source.digests_on_disk(), AdapterState.DISK)
        with self._table.lock:
            entries = self._table.entries.items()
            return on_disk | {digest: entry.state for digest, entry in entries}

    def placement(self, digest: str) -> Placement:
        """Of one, wherever it is."""
        with self._table.lock:
            entry = self._table.entries.get(digest)
            is_pinned = digest in self._table.pins
            if entry is None:
                state = self._table.place_at_rest(digest)
                return Placement(digest, state, is_pinned=is_pinned)
            return entry.placement(digest, is_pinned)

    def placements(self) -> list[Placement]:
        """Of all that are on a tier of this replica, or on their way."""
        on_disk = self._source.digests_on_disk()
        with self._table.lock:
            entries, pins = dict(self._table.entries), self._table.pins
            here = [entry.placement(d, d in pins) for d, entry in entries.items()]
            return here + [
                Placement(d, AdapterState.DISK, is_pinned=d in pins)
                for d in on_disk
                if d not in entries
            ]

    def take_load_times(self, *, drain: bool) -> tuple[float, ...]:
        """Seconds from the request that had an adapter brought to its arrival on the device, of all
        since they were last taken with `drain`."""
        with self._table.lock:
            taken = tuple(self._loader.load_times_s)
            if drain:
                self._loader.load_times_s.clear()
        return taken

    def num_references(self) -> dict[str, int]:
        """Of the adapters that are in use."""
        with self._table.lock:
            entries = self._table.entries.items()
            return {d: entry.num_references for d, entry in entries if entry.num_references}

    def failure(self, digest: str) -> Exception | None:
        with self._table.lock:
            entry = self._table.entries.get(digest)
            return None if entry is None else entry.failure

    def forget(self, digest: str) -> None:
        """Let a failed adapter be tried again."""
        with self._table.lock:
            entry = self._table.entries.get(digest)
            if entry is not None and entry.state is AdapterState.FAILED:
                del self._table.entries[digest]

    def close(self) -> None:
        with self._table.lock:
            self._table.is_closing = True
            self._table.lock.notify_all()
        self._arrivals.close()
        if self.exchange is not None:
            self.exchange.close()
        self._loader.join()
        self._source.close()

    def _tell(self) -> None:
        self.num_changes += 1
        try:
            self._on_change()
        except Exception:  # the listener's fault must not end the thread that tells it
            logger.exception("the listener to adapter changes failed")

    def integrity(self) -> None:
        """AssertionError when states, references or pages contradict each other."""
        self._pool.integrity()
        with self._table.lock:
            self._table.integrity()
