"""One server per data folder: a second one would take running requests for a crash's."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataFolderInUseError(Exception):
    """Another server process works on this data folder."""


@contextmanager
def lock_data_folder(data_dir: Path) -> Iterator[None]:
    """Hold the folder; the lock ends with the process, however it ends."""
    file = data_dir / "server.lock"
    fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataFolderInUseError(f"Another server is running on {data_dir}.") from None
        yield
    finally:
        os.close(fd)
