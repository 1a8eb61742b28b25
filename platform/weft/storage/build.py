"""The store of adapters that a server's settings name."""

from __future__ import annotations

from weft.settings import ServerSettings
from weft.storage.objects import ObjectTarget, create_target
from weft.storage.opened import OpenedStore
from weft.storage.s3 import S3Location, S3Store
from weft_adapters.store import FolderStore


def create_remote_store(settings: ServerSettings) -> S3Store | None:
    """None where adapters are stored in a folder. ValueError for an address that is none."""
    if settings.adapter_store is None:
        return None
    return S3Store(S3Location.parse(settings.adapter_store), settings.s3_endpoint_url)


def create_store(settings: ServerSettings) -> FolderStore | OpenedStore:
    """The store as the registry uses it: it writes to it, and opens the few that it merges."""
    remote = create_remote_store(settings)
    if remote is None:
        return FolderStore(settings.adapters_dir)
    return OpenedStore(remote, settings.opened_adapters_dir)


def create_export_target(settings: ServerSettings) -> ObjectTarget:
    """Where exports go. ValueError for an address that is none."""
    url = settings.export_store or str(settings.exports_dir)
    return create_target(url, settings.s3_endpoint_url)
