"""A remote store whose versions can be opened as files here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from weft_adapters.config import MAX_CONFIG_BYTES
from weft_adapters.disk import DiskTier
from weft_adapters.fetch import DownloadedSource
from weft_adapters.store import CONFIG_NAME, RemoteStore, StoredAdapter
from weft_adapters.workers import Cancellation

_BUDGET_BYTES = 4 * 1024**3


class OpenedStore:
    """A `ReadableStore`. What was read stays for as long as nothing newer needs its room."""

    def __init__(self, store: RemoteStore, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._source: DownloadedSource | None = None
        self._lock = threading.Lock()
        self.put, self.exists = store.put, store.exists
        self.list_digests = store.list_digests

    @contextmanager
    def reading(self, digest: str) -> Iterator[StoredAdapter]:
        """Download it first where it is not here; raises what `DownloadedSource.fetch` does."""
        with ExitStack() as held:
            with self._lock:
                source = self._get_source()
                if not source.has(digest):
                    source.fetch(digest, Cancellation())
                stored = held.enter_context(source.reading(digest))
            yield stored

    def read_config(self, digest: str) -> bytes:
        """Download no more than that. AdapterNotStoredError, StoreUnavailableError, and ValueError
        where it is larger than any can be."""
        data = bytearray()
        with self._store.download(digest, CONFIG_NAME, 0) as chunks:
            for chunk in chunks:
                data += chunk
                if len(data) > MAX_CONFIG_BYTES:
                    raise ValueError(f"the config of {digest} has over {MAX_CONFIG_BYTES} bytes")
        return bytes(data)

    def delete(self, digest: str) -> None:
        self._store.delete(digest)
        with self._lock:
            if self._source is not None or self._folder.exists():
                self._get_source().discard(digest)

    def _get_source(self) -> DownloadedSource:
        if self._source is None:
            self._source = DownloadedSource(self._store, DiskTier(self._folder, _BUDGET_BYTES))
        return self._source

    def close(self) -> None:
        """Let another process have the folder."""
        with self._lock:
            if self._source is not None:
                self._source.close()
                self._source = None
