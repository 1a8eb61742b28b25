"""Row scales of DoRA adapters that were computed before: in memory, and in a folder between runs.

What was computed holds for one adapter on one base in one weight format, which all are in its key.
A file is written beside the others and renamed; its digest stands before its bytes, and one that is
torn or damaged is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from weft_adapters.sites import Site
from weft_adapters.tensors import Float32

logger = logging.getLogger("weft.adapters")

_MIB = 1024 * 1024
_SUFFIX, _TEMPORARY = ".row-scales", ".tmp"
_DIGEST_BYTES = 32

Scales = Mapping[Site, Float32]


class RowScales:
    """Those of adapters on the base of a digest, with its weights in a format. Thread-safe;
    `folder` is made, None for memory alone. Both keep what was used last, at most so many bytes.
    """

    def __init__(
        self,
        base_digest: str,
        weight_format: str,
        folder: Path | None = None,
        *,
        memory_bytes: int = 64 * _MIB,
        folder_bytes: int = 512 * _MIB,
    ) -> None:
        self._holds_for, self._folder = (base_digest, weight_format), folder
        self._memory_bytes, self._folder_bytes = memory_bytes, folder_bytes
        self._kept: OrderedDict[str, Scales] = OrderedDict()
        self._lock = threading.Lock()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            # of a process that was killed; one that still writes computes again
            for left in folder.glob(f"*{_TEMPORARY}"):
                left.unlink(missing_ok=True)

    def find(self, digest: str, sites: Collection[Site]) -> Scales | None:
        """Of an adapter that has them at `sites`; None where they have to be computed."""
        with self._lock:
            scales = self._kept.get(digest)
        if scales is None and self._folder is not None:
            scales = self._read(self._path(self._folder, digest))
        if scales is None or scales.keys() != set(sites):
            return None
        self._remember(digest, scales)
        return scales

    def keep(self, digest: str, scales: Scales) -> None:
        """A folder that cannot be written is logged: what it would have saved is time."""
        self._remember(digest, scales)
        if self._folder is None:
            return
        try:
            self._write(self._path(self._folder, digest), scales)
            self._make_room(self._folder)
        except OSError:
            logger.warning("row scales could not be kept in %s", self._folder, exc_info=True)

    def _remember(self, digest: str, scales: Scales) -> None:
        with self._lock:
            self._kept[digest] = scales
            self._kept.move_to_end(digest)
            num_bytes = sum(m.nbytes for own in self._kept.values() for m in own.values())
            while num_bytes > self._memory_bytes:
                _, oldest = self._kept.popitem(last=False)
                num_bytes -= sum(m.nbytes for m in oldest.values())

    def _path(self, folder: Path, digest: str) -> Path:
        key = "\n".join(("weft-row-scales-v1", digest, *self._holds_for))
        return folder / (hashlib.sha256(key.encode()).hexdigest() + _SUFFIX)

    def _read(self, path: Path) -> Scales | None:
        try:
            content = path.read_bytes()
            os.utime(path)  # so that the order outlives the process
        except FileNotFoundError:
            return None
        except OSError:
            logger.warning("%s could not be read", path, exc_info=True)
            return None
        data = content[_DIGEST_BYTES:]
        try:
            if hashlib.sha256(data).digest() != content[:_DIGEST_BYTES]:
                raise ValueError("its bytes are not those that were written")
            return {_site(name): m for name, m in load(data).items()}
        except (ValueError, SafetensorError) as error:
            logger.warning("%s is damaged and is computed again: %s", path, error)
            return None

    def _write(self, path: Path, scales: Scales) -> None:
        data = save({_name(site): np.ascontiguousarray(m) for site, m in scales.items()})
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=_TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _make_room(self, folder: Path) -> None:
        """The least recently used go first; those that another process removes are gone."""
        found = []
        for path in folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in found) - self._folder_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _name(site: Site) -> str:
    expert = "" if site.expert is None else f".{site.expert}"
    return f"{site.layer}{expert}.{site.projection}"


def _site(name: str) -> Site:
    layer, *expert, projection = name.split(".")
    return Site(int(layer), projection, int(expert[0]) if expert else None)
