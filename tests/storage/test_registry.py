"""The registry over S3: parts, versions, imports and purges, and nothing left in the bucket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.registry.shelf import Shelf
from tests.tiny import create_lora

from weft.db.database import Database
from weft.db.schema import prepare
from weft.db.scope import TenantOwner
from weft.db.urls import sqlite_url
from weft.errors import InvalidRequestError
from weft.registry.addresses import HostRules
from weft.registry.buckets import S3Reader
from weft.registry.fetcher import Fetcher
from weft.registry.imports import Importer
from weft.registry.models import AdapterVersion
from weft.registry.reading import BucketRules, Reading
from weft.registry.s3_parts import S3PartStore
from weft.registry.sources import S3Source, Source, UploadSource
from weft.registry.uploads import Uploads
from weft.storage.s3 import S3Location, S3Store

MAX_BYTES = 100_000


class Site:
    """Everything that keeps files keeps them in one place of the bucket."""

    def __init__(self, root: Path, server: str, location: S3Location) -> None:
        prepare(sqlite_url(root / "weft.db"))
        store: Any = S3Store(location, server)
        self.shelf = Shelf(root, Database(sqlite_url(root / "weft.db")), store)
        self.parts = S3PartStore(location, server)
        database, folder = self.shelf.database, root / "uploads"
        self.uploads = Uploads(database, self.parts, folder, MAX_BYTES, self.shelf.quota, 60)
        self.fetcher = Fetcher(HostRules(()))
        rules = BucketRules((f"{location.bucket}/{location.prefix}imports/{{tenant}}",))
        self.reading = Reading(
            database, self.fetcher, "", rules, S3Reader(server), self.uploads, self.parts,
            MAX_BYTES,
        )  # fmt: skip

    async def import_from(self, owner: TenantOwner, source: Source) -> AdapterVersion:
        """The version when it is ready or rejected."""
        folder = self.shelf.root / "uploads"
        importer = Importer(
            self.shelf.database, self.shelf.publisher, self.reading, folder, lambda digest: None
        )
        number = (await importer.submit(owner, "bot", source)).version.number
        task = asyncio.create_task(importer.run())
        while True:
            version = await self.shelf.version(owner, "bot", number)
            if version.state not in ("uploading", "validating") and not importer.num_running:
                break
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return version


@pytest.fixture
async def site(tmp_path: Path, server: str, location: S3Location) -> AsyncIterator[Site]:
    site = Site(tmp_path, server, location)
    yield site
    await site.fetcher.close()
    await site.shelf.database.close()


async def one_chunk(data: bytes) -> AsyncIterator[bytes]:
    yield b'--b\r\ncontent-disposition: form-data; name="data"\r\n\r\n' + data + b"\r\n--b--\r\n"


def keys(client: Any, location: S3Location) -> list[str]:
    page = client.list_objects_v2(Bucket=location.bucket, Prefix=location.prefix)
    return [found["Key"].removeprefix(location.prefix) for found in page.get("Contents", ())]


async def test_a_version_made_of_parts_in_s3_is_purged_from_it(
    site: Site, client: Any, location: S3Location
) -> None:
    acme = await site.shelf.tenant("acme", "bot")
    upload_ids = []
    for name, data in create_lora().items():
        upload = await site.uploads.create(acme, name, len(data), "")
        body_type = "multipart/form-data; boundary=b"
        part = await site.uploads.add_part(acme, upload.id, body_type, one_chunk(data))
        await site.uploads.complete(acme, upload.id, [part.id], None)
        upload_ids.append(upload.id)
    assert {key.partition("/")[0] for key in keys(client, location)} == {"uploads"}
    version = await site.import_from(acme, UploadSource(type="upload", upload_ids=upload_ids))
    assert version.state == "ready"
    assert version.digest is not None
    folder = version.digest.removeprefix("sha256:")
    assert {key.partition("/")[0] for key in keys(client, location)} == {folder}
    await site.shelf.delete_adapter(acme, "bot")
    assert (await site.shelf.purger.purge(0)).num_digests == 1
    assert keys(client, location) == []


async def test_a_tenant_imports_from_its_own_folder_only(
    site: Site, client: Any, location: S3Location
) -> None:
    acme, other = [await site.shelf.tenant(name, "bot") for name in ("acme", "other")]
    folder = f"{location.prefix}imports/{acme.tenant_id}/bot"
    for name, data in create_lora().items():
        client.put_object(Bucket=location.bucket, Key=f"{folder}/{name}", Body=data)
    source = S3Source(type="s3", uri=f"s3://{location.bucket}/{folder}")
    assert (await site.import_from(acme, source)).state == "ready"
    with pytest.raises(InvalidRequestError, match="not in a bucket to import from"):
        await site.import_from(other, source)
    missing = S3Source(type="s3", uri=f"s3://{location.bucket}/{folder}/none")
    version = await site.import_from(acme, missing)
    assert version.report["faults"][0]["code"] == "source_not_found"
