"""Where the parts of an upload rest until a version is made of them. Every method may block."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from weft.registry.models import Upload, UploadPart


class PartsMissingError(Exception):
    """Parts that were there are not there any more."""


class PartStore(Protocol):
    """Keeps parts durably, by the ids of upload and part. Ids are ours, never a caller's text."""

    def begin(self, upload_id: str) -> str | None:
        """Make ready for parts; gives what the store calls the upload, if it calls it anything."""

    def put(self, upload: Upload, part_id: str, number: int, path: Path) -> str | None:
        """Keep the file `path`, which may be moved away; gives what the store calls its bytes."""

    def complete(self, upload: Upload, parts: Sequence[UploadPart]) -> None:
        """No other parts will come. Idempotent. ValueError, for the caller to read, where the
        parts cannot be put together in this order."""

    def assemble(self, upload: Upload, path: Path) -> None:
        """Write the completed upload to the new file `path`; PartsMissingError."""

    def discard(self, upload_id: str, remote_id: str | None) -> None:
        """Forget the upload, complete or not. Idempotent."""

    def list_uploads(self) -> list[tuple[str, str | None]]:
        """The ids of all uploads of which something is kept, and what the store calls them."""


class FolderPartStore:
    """A `PartStore` in a local folder: one folder for an upload, one file for a part.

    A part appears by a rename, so a crash leaves all of it or a temporary file of the intake.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def begin(self, upload_id: str) -> str | None:
        (self._root / upload_id).mkdir(parents=True, exist_ok=True)
        return None

    def put(self, upload: Upload, part_id: str, number: int, path: Path) -> str | None:
        folder = self._root / upload.id
        folder.mkdir(parents=True, exist_ok=True)
        _sync(path)
        path.replace(folder / part_id)
        _sync(folder)
        return None

    def complete(self, upload: Upload, parts: Sequence[UploadPart]) -> None:
        """The parts stay as they are: to put them together costs a copy, perhaps for nothing."""

    def assemble(self, upload: Upload, path: Path) -> None:
        with path.open("xb") as file:
            for part_id in upload.part_ids:
                try:
                    with (self._root / upload.id / part_id).open("rb") as part:
                        shutil.copyfileobj(part, file, 1 << 20)
                except FileNotFoundError as error:
                    raise PartsMissingError from error

    def discard(self, upload_id: str, remote_id: str | None) -> None:
        shutil.rmtree(self._root / upload_id, ignore_errors=True)

    def list_uploads(self) -> list[tuple[str, str | None]]:
        if not self._root.is_dir():
            return []
        return sorted((folder.name, None) for folder in self._root.iterdir())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
