"""The disk tier: versions of a remote store in a folder of this machine, bounded in bytes.

A version is a sub-folder named by its digest. It is written beside the others and renamed when it
is whole, so a process that is killed leaves all of it or a temporary folder, which the next start
sweeps. Nothing is forced to the medium: what a power cut tears has another digest, and every reader
verifies that.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weft_adapters.digest import is_digest
from weft_adapters.load_times import LoadTimes
from weft_adapters.policy import EvictionPolicy, LruPolicy, Pins, Resident, choose_victims
from weft_adapters.store import AdapterNotStoredError, StoredAdapter, stored_in

_TEMPORARY = ".incoming-"
_DOOMED = ".doomed-"
_LOCK_NAME = ".lock"


class DiskInUseError(OSError):
    """Another process has the folder."""


class DiskFullError(OSError):
    """All that is on the disk is in use just now; there may be room later."""


class AdapterTooLargeForDiskError(ValueError):
    """The version has more bytes than the whole tier."""


@dataclass(slots=True)
class _Held:
    """A version on the disk; `used_s` are seconds of the file system's clock."""

    num_bytes: int
    used_s: float
    num_readers: int = 0


class DiskTier:
    """At most `budget_bytes` of versions below `root`; who makes room is the policy's choice.

    Thread-safe. One process has the folder at a time: DiskInUseError otherwise.
    """

    def __init__(self, root: Path, budget_bytes: int, policy: EvictionPolicy | None = None) -> None:
        self._root, self._budget_bytes = root, budget_bytes
        self.policy = LruPolicy() if policy is None else policy
        self.pins = Pins()
        self._loads = LoadTimes(latency_s=0.02, bytes_per_s=1e9)
        root.mkdir(parents=True, exist_ok=True)
        self._lock_file = (root / _LOCK_NAME).open("a")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock_file.close()
            raise DiskInUseError(f"another process uses {root}") from None
        self._lock = threading.Lock()
        self._reserved: dict[str, int] = {}
        self._versions = self._sweep()
        with self._lock:
            self._make_room(0)

    def _sweep(self) -> dict[str, _Held]:
        """What a process before this one left whole; the rest is removed."""
        found = {}
        for path in self._root.iterdir():
            digest = f"sha256:{path.name}"
            if is_digest(digest) and stored_in(path).is_complete:
                found[digest] = _Held(stored_in(path).num_bytes, path.stat().st_mtime)
            elif path.name != _LOCK_NAME:
                _remove(path)
        return found

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock_file.close()

    # ---- what is there ----

    # the first three take no lock: who must not wait for files asks them, and one look at a
    # dictionary is never torn

    def __contains__(self, digest: object) -> bool:
        return digest in self._versions

    def num_bytes_of(self, digest: str) -> int:
        """0 when it is not there."""
        held = self._versions.get(digest)
        return 0 if held is None else held.num_bytes

    def digests(self) -> list[str]:
        return list(self._versions)

    @property
    def num_bytes(self) -> int:
        """Of whole versions and of those that are being written."""
        with self._lock:
            return self._num_bytes()

    def _num_bytes(self) -> int:
        held = sum(version.num_bytes for version in self._versions.values())
        return held + sum(self._reserved.values())

    # ---- reading and writing ----

    @contextmanager
    def reading(self, digest: str) -> Iterator[StoredAdapter]:
        """The files, which stay until the context ends; AdapterNotStoredError without them."""
        folder = self._folder(digest)
        with self._lock:
            held = self._versions.get(digest)
            if held is None:
                raise AdapterNotStoredError(f"the disk has no adapter {digest}")
            held.num_readers += 1
            held.used_s = time.time()
        try:
            os.utime(folder)  # so that the order outlives the process
            yield stored_in(folder)
        finally:
            with self._lock:
                held.num_readers -= 1

    @contextmanager
    def writing(self, digest: str, num_bytes: int) -> Iterator[Path]:
        """An empty folder for the files of a version of `num_bytes`. It is the version's when the
        context ends well, and gone when it ends with an error.

        AdapterTooLargeForDiskError and DiskFullError when there is no room for it.
        """
        folder = self._folder(digest)
        with self._lock:
            assert digest not in self._reserved, "a version is written twice at a time"
            self._make_room(num_bytes)
            self._reserved[digest] = num_bytes
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._root))
        try:
            yield temporary
            written = stored_in(temporary)
            assert written.is_complete, "a version is written without its files"
            size = written.num_bytes
            assert size <= num_bytes, "a version has more bytes than were reserved"
            with self._lock:
                del self._reserved[digest]
                if digest not in self._versions:
                    temporary.rename(folder)
                    self._versions[digest] = _Held(size, time.time())
        finally:
            with self._lock:
                self._reserved.pop(digest, None)
            shutil.rmtree(temporary, ignore_errors=True)  # where it was not renamed

    def discard(self, digest: str) -> None:
        """Forget a version whose bytes turned out wrong; readers keep what they opened."""
        with self._lock:
            if self._versions.pop(digest, None) is not None:
                self._remove_version(digest)

    def _make_room(self, num_bytes: int) -> None:
        """Evict until `num_bytes` more fit. The caller holds the lock."""
        if num_bytes > self._budget_bytes:
            raise AdapterTooLargeForDiskError(
                f"the adapter has {num_bytes} bytes, the disk tier {self._budget_bytes}"
            )
        excess = self._num_bytes() + num_bytes - self._budget_bytes
        if excess <= 0:
            return
        residents = [
            Resident(digest, held.num_bytes, held.used_s, self._loads.estimate(held.num_bytes))
            for digest, held in self._versions.items()
        ]
        may_go = self.pins.free_to_go(residents, self._budget_bytes)
        idle = [r for r in may_go if self._versions[r.digest].num_readers == 0]
        victims = choose_victims(self.policy.rank(idle, time.monotonic()), excess)
        if not victims:
            raise DiskFullError(f"{num_bytes} bytes do not fit beside what is in use")
        for victim in victims:
            del self._versions[victim.digest]
            self._remove_version(victim.digest)

    def note_load(self, num_bytes: int, seconds: float) -> None:
        """What a download took."""
        with self._lock:
            self._loads.record(num_bytes, seconds)

    def _remove_version(self, digest: str) -> None:
        """Renamed first: a process that is killed half-way leaves nothing that looks whole."""
        doomed = Path(tempfile.mkdtemp(prefix=_DOOMED, dir=self._root))
        self._folder(digest).rename(doomed / "version")
        shutil.rmtree(doomed, ignore_errors=True)  # what stays is swept at the next start

    def _folder(self, digest: str) -> Path:
        if not is_digest(digest):
            raise ValueError(f"{digest[:100]!r} is not a digest")
        return self._root / digest.removeprefix("sha256:")

    def integrity(self) -> None:
        """AssertionError when the folder does not hold what the tier believes."""
        with self._lock:
            assert self._num_bytes() <= self._budget_bytes, "the disk tier is over its budget"
            found = {f"sha256:{path.name}" for path in self._root.iterdir()}
            assert {d for d in found if is_digest(d)} == set(self._versions), "a version is lost"
            for digest, held in self._versions.items():
                stored = stored_in(self._folder(digest))
                assert stored.num_bytes == held.num_bytes, f"{digest} has other files"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
