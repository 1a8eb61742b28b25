"""The threads that bring versions from the store into host memory: some download, some read.

Downloads wait for the network and run side by side; reading hashes and converts, and takes a core.
What was read is handed to the loader, and no more is read than it takes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from weft_adapters.base_weights import BaseWeights
from weft_adapters.fetch import DownloadFailedError, Source
from weft_adapters.host import Weights
from weft_adapters.pace import Pace
from weft_adapters.row_scales import RowScales
from weft_adapters.site_weights import num_bytes
from weft_adapters.sites import BaseSpec
from weft_adapters.source import load_verified
from weft_adapters.states import AdapterState, Entry
from weft_adapters.store import AdapterNotStoredError
from weft_adapters.table import TierTable
from weft_adapters.workers import Cancellation, CancelledError, FairWorkers

logger = logging.getLogger("weft.adapters")

# so many copies of a version may turn out wrong before the version is taken to be
_MAX_DAMAGED = 3


class AdapterUnreadableError(ValueError):
    """The server could not read the adapter; why is the operator's to know."""


class Arrivals:
    """`add` a version that has to come to host memory; `tell` is called when one has failed.
    `keep` moves factors to memory from which the device likes to read."""

    def __init__(
        self,
        source: Source,
        base: BaseSpec,
        base_weights: BaseWeights | None,
        *,
        num_downloads: int,
        num_readers: int,
        pace: Pace,
        keep: Callable[[Weights], Weights],
        tell: Callable[[], None],
        row_scales: RowScales | None = None,
    ) -> None:
        self._source, self._tell = source, tell
        self._pace, self._keep = pace, keep
        self._base, self._base_weights = base, base_weights
        self._row_scales = row_scales
        self._downloads = FairWorkers("weft-adapter-download", num_downloads, self._download)
        self._readers = FairWorkers("weft-adapter-reader", num_readers, self._read)
        self._table: TierTable

    def serve(self, table: TierTable) -> None:
        """The table that these threads work for; before anything is added."""
        self._table = table

    def close(self) -> None:
        self._downloads.close()
        self._readers.close()

    # ---- with the table's lock ----

    def is_here(self, digest: str) -> bool:
        """It can be read without being fetched before."""
        return self._source.has(digest)

    def add(self, digest: str, entry: Entry) -> None:
        entry.workers = self._readers if self._source.has(digest) else self._downloads
        entry.workers.add(digest, entry.tenant_id)

    def withdraw(self, digest: str, entry: Entry) -> None:
        """Nobody waits for it: what has not been fetched yet is not."""
        if entry.workers is None:
            return
        # what is being read is there in a moment
        if entry.workers.cancel(digest) or entry.workers is self._downloads:
            entry.workers = None
            self._table.blocked.end(digest)
            self._table.update_draining()
            self._table.rest(digest, entry)

    # ---- the threads ----

    def _download(self, digest: str, cancellation: Cancellation) -> None:
        with self._table.lock:
            if cancellation.is_cancelled:
                return
            self._table.entries[digest].state = AdapterState.FETCHING
        try:
            with self._pace.span("download", digest):
                self._source.fetch(digest, cancellation)
        except CancelledError:
            return
        except Exception as error:  # whatever is wrong with one adapter is its own failure
            self.fail(digest, error, cancellation)
            return
        with self._table.lock:
            if not cancellation.is_cancelled:
                self.add(digest, self._table.entries[digest])

    def _read(self, digest: str, _cancellation: Cancellation) -> None:
        table = self._table
        with table.lock:
            if table.is_closing:
                return
            entry = table.entries[digest]
            if table.has_to_wait(digest):
                entry.workers = None
                table.block(digest, 0)  # and need not be read before its turn
                return
            entry.state = AdapterState.FETCHING
        try:
            weights = self.try_read(digest)
        except Exception as error:
            self.fail(digest, error)
            return
        with table.lock:
            if weights is None:
                self.add(digest, entry)
                return
            entry.workers = None
            entry.state, entry.in_hand = AdapterState.HOST, weights
            table.enqueue(digest, entry)
            table.lock.wait_for(lambda: entry.in_hand is not weights or table.is_closing)

    def try_read(self, digest: str) -> Weights | None:
        """Verified, and kept on the host as long as there is room; None when the copy on the disk
        is wrong and has to be fetched again."""
        started_s = time.monotonic()
        try:
            with self._pace.span("read", digest), self._source.reading(digest) as stored:
                weights = self._keep(
                    load_verified(
                        stored,
                        digest,
                        self._base,
                        self._base_weights,
                        self._row_scales,
                        self._pace.pause,
                    )  # fmt: skip
                )
        except (ValueError, OSError, AdapterNotStoredError) as error:
            with self._table.lock:
                entry = self._table.entries[digest]
                entry.num_damaged += 1
                is_last = entry.num_damaged >= _MAX_DAMAGED
            if not self._source.discard(digest) or is_last:
                raise
            logger.warning("a copy of adapter %s is wrong and is fetched again: %s", digest, error)
            return None
        rank = max((site.rank for site in weights.values()), default=0)
        size = num_bytes(weights)
        with self._table.lock:
            entry = self._table.entries[digest]
            entry.rank, entry.num_bytes = rank, size
            self._table.keep_on_host(digest, weights, time.monotonic() - started_s)
        return weights

    def fail(self, digest: str, error: Exception, cancellation: Cancellation | None = None) -> None:
        with self._table.lock:
            if cancellation is not None and cancellation.is_cancelled:
                return
            logger.error("adapter %s could not be loaded", digest, exc_info=error)
            self._table.fail(digest, _told(error))
        self._tell()


def _told(error: Exception) -> Exception:
    """What a tenant may read: paths, addresses and devices are no business of theirs."""
    if isinstance(error, DownloadFailedError):
        return AdapterUnreadableError("the server could not fetch its files")
    if isinstance(error, ValueError | AdapterNotStoredError):
        return error
    return AdapterUnreadableError("the server could not read its files")
