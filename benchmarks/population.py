"""Adapters that come, are replaced under their names and go, as tenants do it through the registry:
a name points at a digest, a new version is a new digest, and what nobody can reach or is using any
more is deleted from the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from weft.engine.build import BuiltEngine
from weft.engine.offline import register_folder
from weft_adapters.store import FolderStore

# (number of the upload, folder): writes a PEFT adapter
SaveAdapter = Callable[[int, Path], None]


class Population:
    """The first of `stores` forgets versions; the others, if any, keep all of them."""

    def __init__(
        self, built: BuiltEngine, stores: Sequence[FolderStore], save: SaveAdapter, scratch: Path
    ) -> None:
        self._built, self._stores, self._save = built, stores, save
        self._scratch = scratch
        self.current: dict[str, str] = {}
        self._unreachable: set[str] = set()
        self.num_uploads = self.num_replaced = self.num_deleted = 0

    def upload(self, name: str) -> str:
        """A new version under `name`; its digest."""
        folder = self._scratch / "upload"
        folder.mkdir()
        self._save(self.num_uploads, folder)
        digests = {register_folder(self._built, store, folder) for store in self._stores}
        shutil.rmtree(folder)
        (digest,) = digests
        self.num_uploads += 1
        if name in self.current:
            self.num_replaced += 1
            self._unreachable.add(self.current[name])
        self.current[name] = digest
        return digest

    def delete(self, name: str) -> None:
        self._unreachable.add(self.current.pop(name))
        self.num_deleted += 1

    def collect(self, in_use: Collection[str]) -> None:
        """Delete the versions that no name points at and no request uses."""
        for digest in self._unreachable - set(in_use) - set(self.current.values()):
            self._stores[0].delete(digest)
            self._unreachable.remove(digest)
