"""Versions that the server gets by itself: from a hub, fairly, and anew after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from tests.internet import HUB, Handler, Internet
from tests.tiny import create_lora

from weft.db.scope import Owner
from weft.errors import InvalidRequestError, RateLimitError
from weft.registry.imports import Importer, SourceReader
from weft.registry.intake import sweep_uploads
from weft.registry.lifecycle import create_version
from weft.registry.parts import FolderPartStore
from weft.registry.quota import Quota
from weft.registry.reading import BucketRules, Reading
from weft.registry.recovery import MAX_ATTEMPTS, recover, recover_imports
from weft.registry.service import get_adapter
from weft.registry.sources import HubSource, S3Source, Source
from weft.registry.uploads import Uploads

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SOURCE = HubSource(type="huggingface", repo="org/bot", revision=COMMIT)


def offer(files: dict[str, bytes], repo: str = "org/bot") -> None:
    for name, data in files.items():
        Handler.files[f"/{repo}/resolve/{COMMIT}/{name}"] = data


@asynccontextmanager
async def running(importer: Importer) -> AsyncIterator[Importer]:
    task = asyncio.create_task(importer.run())
    yield importer
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def settled(shelf: Any, owner: Owner, number: int) -> Any:
    for _ in range(1000):
        version = await shelf.version(owner, "bot", number)
        if version.state not in ("uploading", "validating"):
            return version
        await asyncio.sleep(0.01)
    raise AssertionError(f"still {version.state}")


@pytest.fixture
async def reader(shelf: Any, internet: Internet) -> AsyncIterator[Reading]:
    folder, max_bytes = shelf.root / "uploads", 100_000
    parts = FolderPartStore(folder / "parts")
    uploads = Uploads(shelf.database, parts, folder, max_bytes, shelf.quota, 60)
    fetcher = internet.fetcher()
    yield Reading(
        shelf.database, fetcher, f"{HUB}:{internet.port}", BucketRules(()), None, uploads, parts,
        max_bytes,
    )  # fmt: skip
    await fetcher.close()


@pytest.fixture
def create(shelf: Any) -> Callable[[SourceReader], Importer]:
    def create(reader: SourceReader) -> Importer:
        folder = shelf.root / "uploads"
        return Importer(shelf.database, shelf.publisher, reader, folder, shelf.purged.append)

    return create


Create = Callable[[SourceReader], Importer]


async def test_a_repository_at_a_commit_becomes_a_version(
    shelf: Any, reader: Reading, create: Create
) -> None:
    acme = await shelf.tenant("acme", "bot")
    offer({**create_lora(), "README.md": b"---\nlicense: mit\n---\n", "setup.py": b"evil"})
    Handler.file_headers["x_repo_commit"] = COMMIT
    async with running(create(reader)) as importer:
        promised = await importer.submit(acme, "bot", SOURCE)
        assert (promised.status_code, promised.version.state) == (202, "uploading")
        version = await settled(shelf, acme, 1)
    assert (version.state, version.card) == ("ready", {"license": "mit"})
    assert version.source == {"type": "huggingface", "repo": "org/bot", "revision": COMMIT}
    assert shelf.store.exists(version.digest)
    assert version.digest == (await shelf.publish(acme, "bot")).version.digest
    # nothing but the files of an adapter was asked for
    asked = {path.rpartition("/")[2] for _, path in Handler.hits}
    assert {CONFIG, TENSORS, "README.md"} <= asked
    assert "setup.py" not in asked
    assert list((shelf.root / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "headers", "code"),
    [
        ({}, {}, "source_not_found"),
        ({CONFIG: b"{}"}, {}, "source_not_found"),
        ({TENSORS: b"x" * 200_000}, {}, "source_too_large"),
        ({}, {"x_repo_commit": "f" * 40}, "source_changed"),
        ({}, {"x_linked_etag": '"' + "0" * 64 + '"'}, "source_changed"),
        ({TENSORS: b"version https://git-lfs.github.com/spec/v1\noid sha256:0"}, {}, None),
        ({CONFIG: b"{"}, {}, None),
    ],
)
async def test_what_cannot_be_imported_is_rejected_with_the_reason(
    shelf: Any,
    reader: Reading,
    create: Create,
    files: dict[str, bytes],
    headers: dict[str, str],
    code: str | None,
) -> None:
    acme = await shelf.tenant("acme", "bot")
    if files or headers:
        offer({**create_lora(), **files} if CONFIG not in files or code is None else files)
    Handler.file_headers.update(headers)
    async with running(create(reader)) as importer:
        await importer.submit(acme, "bot", SOURCE)
        version = await settled(shelf, acme, 1)
    assert version.state == "rejected"
    assert code in (None, version.report["faults"][0]["code"])
    assert version.report["ok"] is False
    assert all(fault["message"] for fault in version.report["faults"])
    assert shelf.store.list_digests() == []
    assert list((shelf.root / "uploads").iterdir()) == []


async def test_a_source_that_is_not_allowed_promises_nothing(
    shelf: Any, reader: Reading, create: Create, internet: Internet
) -> None:
    acme = await shelf.tenant("acme", "bot")
    elsewhere = Reading(
        shelf.database, internet.fetcher(), "elsewhere.example", BucketRules(()), None,
        reader._uploads, reader._parts, 1,
    )  # fmt: skip
    bucket = S3Source(type="s3", uri="s3://bucket/folder")
    for chosen, source in ((elsewhere, SOURCE), (reader, bucket)):
        with pytest.raises(InvalidRequestError) as caught:
            await create(chosen).submit(acme, "bot", source)
        assert caught.value.code == "source_not_allowed"


def test_buckets_are_listed_by_folder_and_tenant() -> None:
    class Acme:
        tenant_id = "tnt_a"

    def allows(rule: str, uri: str) -> bool:
        return BucketRules((rule,)).allows(Acme(), S3Source(type="s3", uri=uri))

    assert allows("bucket", "s3://bucket/a/b")
    assert allows("bucket/a", "s3://bucket/a")
    assert allows("bucket/{tenant}", "s3://bucket/tnt_a/x/")
    assert not allows("bucket/{tenant}", "s3://bucket/tnt_b/x")
    assert not allows("bucket/{tenant}", "s3://bucket/tnt_ab/x")
    assert not allows("bucket", "s3://bucket2/a")
    assert not allows("bucket/a", "s3://bucket/ab")


class Gate:
    """A reader whose imports wait until they are let through."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.opened = asyncio.Event()

    async def check(self, session: AsyncSession, owner: Owner, source: Source) -> None:
        """Everything is allowed."""

    async def read(self, owner: Owner, source: Source, folder: Path) -> None:
        self.begun.append(owner.tenant_id)
        await self.opened.wait()
        for name, data in create_lora(len(self.begun)).items():
            (folder / name).write_bytes(data)

    async def on_ready(self, owner: Owner, source: Source) -> None:
        """Nothing was kept."""


async def test_a_tenant_with_many_imports_does_not_keep_others_waiting(
    shelf: Any, create: Create
) -> None:
    acme, other = await shelf.tenant("acme", "bot"), await shelf.tenant("other", "bot")
    gate = Gate()
    importer = create(gate)
    for _ in range(4):
        await importer.submit(acme, "bot", SOURCE)
    await importer.submit(other, "bot", SOURCE)
    async with running(importer):
        while len(gate.begun) < 2:
            await asyncio.sleep(0.01)
        assert gate.begun == [acme.tenant_id, other.tenant_id]
        gate.opened.set()
        assert (await settled(shelf, other, 1)).state == "ready"
        for number in (1, 2, 3, 4):
            await settled(shelf, acme, number)
    assert gate.begun == [acme.tenant_id, other.tenant_id, *[acme.tenant_id] * 3]


async def test_a_tenant_has_so_many_imports_under_way(shelf: Any, create: Create) -> None:
    acme = await shelf.tenant("acme", "bot")
    shelf.quota = Quota(max_imports=2)
    importer = create(Gate())
    for _ in range(2):
        await importer.submit(acme, "bot", SOURCE)
    with pytest.raises(RateLimitError):
        await importer.submit(acme, "bot", SOURCE)


async def test_an_import_that_a_stop_interrupted_begins_anew(
    shelf: Any, reader: Reading, create: Create
) -> None:
    acme = await shelf.tenant("acme", "bot")
    gate = Gate()
    async with running(create(gate)) as importer:
        await importer.submit(acme, "bot", SOURCE)
        while not gate.begun:
            await asyncio.sleep(0.01)
    assert (await shelf.version(acme, "bot", 1)).state == "uploading"
    assert await recover(shelf.database) == 0
    sweep_uploads(shelf.root / "uploads")
    offer(create_lora())
    async with running(create(reader)):
        assert (await settled(shelf, acme, 1)).state == "ready"
    assert await recover(shelf.database) == 0


async def test_an_import_that_ends_the_process_each_time_is_given_up(
    shelf: Any, create: Create
) -> None:
    acme = await shelf.tenant("acme", "bot")
    await create(Gate()).submit(acme, "bot", SOURCE)
    outcomes = [await recover(shelf.database) for _ in range(MAX_ATTEMPTS)]
    assert outcomes == [0] * (MAX_ATTEMPTS - 1) + [1]
    version = await shelf.version(acme, "bot", 1)
    assert (version.state, version.report["faults"][0]["code"]) == ("rejected", "interrupted")


async def test_a_process_that_takes_over_leaves_uploads_to_those_that_receive_them(
    shelf: Any, create: Create
) -> None:
    acme = await shelf.tenant("acme", "bot")
    await create(Gate()).submit(acme, "bot", SOURCE)
    async with shelf.database.writing() as session:
        adapter = await get_adapter(session, acme, "bot")
        upload = create_version(adapter, shelf.base, 2, {"type": "multipart"})
        session.add(upload)
    outcomes = [await recover_imports(shelf.database) for _ in range(MAX_ATTEMPTS)]
    assert outcomes == [0] * (MAX_ATTEMPTS - 1) + [1]
    assert (await shelf.version(acme, "bot", 1)).state == "rejected"
    assert (await shelf.version(acme, "bot", 2)).state == "uploading"


async def test_an_import_that_another_process_has_promised_is_done(
    shelf: Any, reader: Reading, create: Create
) -> None:
    if shelf.database.is_sqlite:
        return  # there is one process
    acme = await shelf.tenant("acme", "bot")
    offer(create_lora())
    async with running(create(reader)):
        await asyncio.sleep(0.05)  # it has asked for work already
        await create(reader).submit(acme, "bot", SOURCE)
        assert (await settled(shelf, acme, 1)).state == "ready"


async def test_an_import_is_given_up_when_its_version_is_deleted(
    shelf: Any, create: Create
) -> None:
    acme = await shelf.tenant("acme", "bot")
    gate = Gate()
    async with running(create(gate)) as importer:
        await importer.submit(acme, "bot", SOURCE)
        await importer.submit(acme, "bot", SOURCE)
        while len(gate.begun) < 2:
            await asyncio.sleep(0.01)
        await shelf.delete_version(acme, "bot", 1)
        gate.opened.set()
        kept = await settled(shelf, acme, 2)
    assert (await shelf.version(acme, "bot", 1)).state == "archived"
    await shelf.purger.purge(0)
    version = await shelf.version(acme, "bot", 1)
    assert (version.state, version.digest) == ("purged", None)
    assert kept.state == "ready"
    assert shelf.store.list_digests() == [kept.digest]
