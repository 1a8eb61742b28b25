"""Where the tiers read versions from: a store on this machine, or a remote one by way of the disk.

A download goes on where it broke off. Whether the bytes are right is found by who reads them: a
version that was damaged on its way is discarded and fetched once more.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from weft_adapters.disk import DiskFullError, DiskTier
from weft_adapters.store import (
    CONFIG_NAME,
    TENSORS_NAME,
    LocalStore,
    RemoteStore,
    StoredAdapter,
    StoreUnavailableError,
)
from weft_adapters.workers import Cancellation

logger = logging.getLogger("weft.adapters")

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_MAX_FILES = 16
# so many failures without a byte in between are not the network's alone
_DOUBTFUL = 2


class DownloadFailedError(StoreUnavailableError):
    """The store was tried as often and as long as it may be."""


class Source(Protocol):
    """A version's files, for whoever reads them. Thread-safe."""

    def has(self, digest: str) -> bool:
        """Nothing needs to be fetched before it is read. Never waits."""

    def is_on_disk(self, digest: str) -> bool:
        """The disk tier has it. Never waits."""

    def digests_on_disk(self) -> list[str]:
        """Of the disk tier. Never waits."""

    def fetch(self, digest: str, cancellation: Cancellation) -> None:
        """Bring it here; CancelledError, AdapterNotStoredError, DownloadFailedError when the store
        gave no whole answer in time, and what `DiskTier.writing` raises."""

    def reading(self, digest: str) -> AbstractContextManager[StoredAdapter]:
        """The files, there until the context ends; AdapterNotStoredError when there are none."""

    def discard(self, digest: str) -> bool:
        """Its bytes are wrong: False when there are no better ones to be fetched."""

    def note_request(self, digest: str) -> None:
        """A request for it found it neither on the device nor in host memory. Never waits."""

    def pin(self, digest: str, is_pinned: bool) -> None:
        """Whether the disk tier may let it go. Never waits."""

    def close(self) -> None: ...


class LocalSource:
    """A store on this machine is its own disk tier."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def has(self, digest: str) -> bool:
        return True

    def is_on_disk(self, digest: str) -> bool:
        return False

    def digests_on_disk(self) -> list[str]:
        return []

    def fetch(self, digest: str, cancellation: Cancellation) -> None:
        """Nothing to do."""

    def reading(self, digest: str) -> AbstractContextManager[StoredAdapter]:
        return nullcontext(self._store.open(digest))

    def discard(self, digest: str) -> bool:
        return False

    def note_request(self, digest: str) -> None:
        """Nothing to do."""

    def pin(self, digest: str, is_pinned: bool) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class RetryRules:
    """A download is given up after so many failures without a byte in between, or after
    `timeout_s` in all. Pauses double from the first to the longest; each is drawn between nothing
    and its full length, so that replicas do not come back all at once."""

    max_failures: int = 6
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    timeout_s: float = 120.0


class DownloadedSource:
    """A remote store through the disk tier, which it owns. `pause` is called after each chunk."""

    def __init__(
        self,
        store: RemoteStore,
        disk: DiskTier,
        rules: RetryRules | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self.disk = store, disk
        self._rules = RetryRules() if rules is None else rules
        self._pause = pause

    def has(self, digest: str) -> bool:
        return digest in self.disk

    def is_on_disk(self, digest: str) -> bool:
        return digest in self.disk

    def digests_on_disk(self) -> list[str]:
        return self.disk.digests()

    def reading(self, digest: str) -> AbstractContextManager[StoredAdapter]:
        return self.disk.reading(digest)

    def discard(self, digest: str) -> bool:
        self.disk.discard(digest)
        return True

    def note_request(self, digest: str) -> None:
        self.disk.policy.record(digest, time.monotonic())

    def pin(self, digest: str, is_pinned: bool) -> None:
        self.disk.pins.set(digest, is_pinned)

    def close(self) -> None:
        self.disk.close()

    def fetch(self, digest: str, cancellation: Cancellation) -> None:
        failures = _Failures(self._rules, cancellation)
        while True:
            started_s = time.monotonic()
            try:
                sizes = self._store.sizes(digest)
                _check_names(sizes)
                with self.disk.writing(digest, sum(sizes.values())) as folder:
                    for name, size in sizes.items():
                        self._download(digest, folder / name, size, failures, cancellation)
                self.disk.note_load(sum(sizes.values()), time.monotonic() - started_s)
                return
            except DownloadFailedError:
                raise
            except (StoreUnavailableError, DiskFullError) as error:
                failures.count(error)

    def _download(
        self,
        digest: str,
        path: Path,
        size: int,
        failures: _Failures,
        cancellation: Cancellation,
    ) -> None:
        with path.open("xb") as file:
            while (start := file.tell()) < size:
                try:
                    self._receive(digest, path.name, file, size, cancellation)
                    if file.tell() < size:
                        raise StoreUnavailableError(f"{path.name} ended after {file.tell()} bytes")
                except StoreUnavailableError as error:
                    if file.tell() > start:
                        failures.forget()
                    elif failures.num_in_a_row == _DOUBTFUL:
                        raise  # what the store said of its size may be wrong
                    failures.count(error)

    def _receive(
        self, digest: str, name: str, file: BinaryIO, size: int, cancellation: Cancellation
    ) -> None:
        with self._store.download(digest, name, file.tell()) as chunks:
            for chunk in chunks:
                cancellation.check()
                if file.tell() + len(chunk) > size:
                    raise StoreUnavailableError(f"{name} has more than its {size} bytes")
                file.write(chunk)
                self._pause()


def as_source(store: LocalStore | DownloadedSource) -> Source:
    return store if isinstance(store, DownloadedSource) else LocalSource(store)


class _Failures:
    """Counts what went wrong with one download, and waits before the next attempt."""

    def __init__(self, rules: RetryRules, cancellation: Cancellation) -> None:
        self._rules, self._cancellation = rules, cancellation
        self._ends_s = time.monotonic() + rules.timeout_s
        self.num_in_a_row = 0

    def forget(self) -> None:
        self.num_in_a_row = 0

    def count(self, error: OSError) -> None:
        """Sleep; DownloadFailedError when there is no further attempt."""
        self._cancellation.check()
        self.num_in_a_row += 1
        rules = self._rules
        longest_s = min(rules.longest_pause_s, rules.first_pause_s * 2 ** (self.num_in_a_row - 1))
        pause_s = random.uniform(0, longest_s)
        if self.num_in_a_row >= rules.max_failures or time.monotonic() + pause_s > self._ends_s:
            raise DownloadFailedError(
                f"given up after {self.num_in_a_row} failures: {error}"
            ) from error
        logger.info("a download failed and is tried again in %.2f s: %s", pause_s, error)
        self._cancellation.sleep(pause_s)


def _check_names(sizes: Mapping[str, int]) -> None:
    missing = {CONFIG_NAME, TENSORS_NAME} - sizes.keys()
    bad = [name for name in sizes if _FILE_NAME.match(name) is None]
    if missing or bad or len(sizes) > _MAX_FILES:
        raise StoreUnavailableError(
            f"the store names {len(sizes)} files; missing: {sorted(missing)}, "
            f"not ours: {[name[:100] for name in bad[:3]]}"
        )
