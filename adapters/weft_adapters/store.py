"""Where versions rest: a store keeps an adapter's two files under its digest."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from weft_adapters.digest import is_digest

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
_TEMPORARY = ".incoming-"
_LOCK_NAME = ".lock"


class AdapterNotStoredError(LookupError):
    """The store has no adapter of this digest."""


class StoreUnavailableError(OSError):
    """The store did not answer, or broke off; trying again may help."""


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """The two files of a version; they never change."""

    config_path: Path
    tensors_path: Path

    @property
    def num_bytes(self) -> int:
        return self.config_path.stat().st_size + self.tensors_path.stat().st_size

    @property
    def is_complete(self) -> bool:
        return self.config_path.is_file() and self.tensors_path.is_file()


def stored_in(folder: Path) -> StoredAdapter:
    """The version whose files are in `folder`, under their usual names."""
    return StoredAdapter(folder / CONFIG_NAME, folder / TENSORS_NAME)


class AdapterStore(Protocol):
    """A store of immutable versions by digest; every method may block."""

    def put(self, digest: str, config_bytes: bytes, tensors_path: Path) -> None:
        """Keep a copy durably and all at once. Where the digest is there already, files that are
        not these bytes are replaced: an upload is verified, what has lain on a disk may be damaged.
        """

    def exists(self, digest: str) -> bool: ...

    def delete(self, digest: str) -> None:
        """Forget the version; does nothing when it is not there."""

    def list_digests(self) -> list[str]: ...


class LocalStore(AdapterStore, Protocol):
    """A store whose files are files of this machine."""

    def open(self, digest: str) -> StoredAdapter:
        """The files; AdapterNotStoredError when there are none."""


class ReadableStore(AdapterStore, Protocol):
    """A store whose files can be had on this machine for a while."""

    def reading(self, digest: str) -> AbstractContextManager[StoredAdapter]:
        """The files, there until the context ends; AdapterNotStoredError when there are none."""


class RemoteStore(AdapterStore, Protocol):
    """A store whose files have to be downloaded before they can be read."""

    def sizes(self, digest: str) -> Mapping[str, int]:
        """The version's files, by name, and their bytes; AdapterNotStoredError when there are none,
        StoreUnavailableError when the store gives no answer."""

    def download(
        self, digest: str, name: str, start: int
    ) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of one file from `start` on, in chunks. They may end early, or be wrong: that
        is for the caller to find. StoreUnavailableError, also from the chunks, when it breaks off.
        """


class FolderStore:
    """A `LocalStore` in a folder of a local file system; a version is a sub-folder.

    A version appears by a rename, so a crash leaves all of it or nothing of it. Left-over
    temporary folders are removed at start, unless another process is writing just then.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        with (root / _LOCK_NAME).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # a temporary folder may be in use; the next start sweeps
            for left in root.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(left)

    @contextmanager
    def _temporary_folder(self) -> Iterator[Path]:
        """A folder beside the versions that no sweep touches; the lock ends with the process."""
        with (self._root / _LOCK_NAME).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._root))
            try:
                yield temporary
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _folder(self, digest: str) -> Path:
        if not is_digest(digest):
            raise ValueError(f"{digest[:100]!r} is not a digest")
        return self._root / digest.removeprefix("sha256:")

    def put(self, digest: str, config_bytes: bytes, tensors_path: Path) -> None:
        folder = self._folder(digest)
        if _holds(folder, config_bytes, tensors_path):
            return
        with self._temporary_folder() as temporary:
            (temporary / CONFIG_NAME).write_bytes(config_bytes)
            shutil.copyfile(tensors_path, temporary / TENSORS_NAME)
            for path in (temporary / CONFIG_NAME, temporary / TENSORS_NAME, temporary):
                _sync(path)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
                # file by file, so that a reader never finds none: either pair has this digest
                for name in (CONFIG_NAME, TENSORS_NAME):
                    (temporary / name).replace(folder / name)
                _sync(folder)
            _sync(self._root)

    def open(self, digest: str) -> StoredAdapter:
        folder = self._folder(digest)
        if not folder.is_dir():
            raise AdapterNotStoredError(f"the store has no adapter {digest}")
        return stored_in(folder)

    def reading(self, digest: str) -> AbstractContextManager[StoredAdapter]:
        """The files; they stay until they are deleted."""
        return nullcontext(self.open(digest))

    def read_config(self, digest: str) -> bytes:
        """AdapterNotStoredError when there is none."""
        try:
            return self.open(digest).config_path.read_bytes()
        except FileNotFoundError:
            raise AdapterNotStoredError(f"the store has no adapter {digest}") from None

    def exists(self, digest: str) -> bool:
        return self._folder(digest).is_dir()

    def delete(self, digest: str) -> None:
        folder = self._folder(digest)
        if not folder.is_dir():
            return
        # renamed first: a crash half-way leaves a folder that the next start sweeps
        with self._temporary_folder() as doomed:
            folder.rename(doomed / "deleted")

    def list_digests(self) -> list[str]:
        names = (f"sha256:{path.name}" for path in self._root.iterdir())
        return sorted(name for name in names if is_digest(name))


def _holds(folder: Path, config_bytes: bytes, tensors_path: Path) -> bool:
    try:
        return (folder / CONFIG_NAME).read_bytes() == config_bytes and filecmp.cmp(
            folder / TENSORS_NAME, tensors_path, shallow=False
        )
    except OSError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
