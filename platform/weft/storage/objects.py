"""Places for whole small objects by name: a folder, or a bucket of S3. Knows no adapters.

An object appears whole or not at all, also where the process is killed while it is written.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from weft.storage.s3 import S3Location, create_client, translated
from weft_adapters.store import StoreUnavailableError

__all__ = ["FolderTarget", "ObjectTarget", "S3Target", "StoreUnavailableError", "create_target"]

_NUM_ATTEMPTS = 5


class ObjectTarget(Protocol):
    """Names are relative, of plain parts between slashes; ValueError for any other."""

    @property
    def url(self) -> str:
        """Which place it is: the same for every process."""

    def put_file(self, name: str, path: Path) -> None:
        """Write the file's bytes, over what is there."""

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write the bytes, over what is there."""

    def read(self, name: str) -> bytes | None:
        """None where there is no such object."""


def create_target(url: str, s3_endpoint_url: str | None = None) -> ObjectTarget:
    """`s3://bucket/prefix`, or a folder. ValueError for an address that is neither."""
    if url.startswith("s3://"):
        return S3Target(S3Location.parse(url), s3_endpoint_url)
    if "://" in url:
        raise ValueError(f"a target is a folder or s3://bucket/prefix, not {url!r}")
    return FolderTarget(Path(url))


class FolderTarget:
    """Objects as files; a rename makes each appear, after its bytes are on the disk.

    One writer of a name at a time: what a killed one left is written over.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    @property
    def url(self) -> str:
        return str(self._root)

    def put_file(self, name: str, path: Path) -> None:
        self._put(name, path.read_bytes())

    def put_bytes(self, name: str, data: bytes) -> None:
        self._put(name, data)

    def read(self, name: str) -> bytes | None:
        path = self._root / _checked(name)
        return path.read_bytes() if path.is_file() else None

    def _put(self, name: str, data: bytes) -> None:
        path = self._root / _checked(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        _sync_folder(path.parent)


class S3Target:
    """Objects of a bucket, below a prefix. Raises what `weft.storage.s3` does."""

    def __init__(self, location: S3Location, endpoint_url: str | None = None) -> None:
        self._location = location
        self._client: Any = create_client(endpoint_url, _NUM_ATTEMPTS)

    @property
    def url(self) -> str:
        return f"s3://{self._location.bucket}/{self._location.prefix}".rstrip("/")

    def put_file(self, name: str, path: Path) -> None:
        with translated():
            self._client.upload_file(str(path), self._location.bucket, self._key(name))

    def put_bytes(self, name: str, data: bytes) -> None:
        with translated():
            self._client.put_object(Bucket=self._location.bucket, Key=self._key(name), Body=data)

    def read(self, name: str) -> bytes | None:
        with translated():
            try:
                found = self._client.get_object(Bucket=self._location.bucket, Key=self._key(name))
            except self._client.exceptions.NoSuchKey:
                return None
            return bytes(found["Body"].read())

    def _key(self, name: str) -> str:
        return f"{self._location.prefix}{_checked(name)}"


def _checked(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or str(path) != name:
        raise ValueError(f"{name!r} is no name of an object")
    return path


def _sync_folder(folder: Path) -> None:
    # the name itself must outlive a crash of the machine
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
