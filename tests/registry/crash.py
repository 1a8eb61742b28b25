"""Kills a process at one await after another, and looks at what the next start makes of it.

    python -m tests.registry.crash FOLDER SCENARIO[:POINT] ...

Without a point: at all of them, until it ends before it is killed. Each scenario runs in a
process of its own, forked from this one, which has no threads; so does the start after it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from tests.registry.shelf import SPEC, Shelf
from tests.tiny import HF_CONFIG, create_lora

from weft.db.database import Database
from weft.db.schema import prepare
from weft.db.scope import Owner, TenantOwner, unscoped
from weft.db.urls import sqlite_url
from weft.idempotency.claims import Answer, Claim
from weft.registry import aliases
from weft.registry.imports import Importer
from weft.registry.intake import receive_adapter, sweep_uploads
from weft.registry.maintenance_repository import MaintenanceRepository
from weft.registry.merging import MergeLimits, Merger, WantedMerge
from weft.registry.models import AdapterVersion, Upload, UploadPart, VersionState
from weft.registry.parts import FolderPartStore
from weft.registry.publishing import Keep, Published
from weft.registry.recovery import recover
from weft.registry.repository import RegistryRepository
from weft.registry.service import get_adapter
from weft.registry.sources import HubSource, Source
from weft.registry.uploads import Uploads
from weft.tenancy.repository import TenantRepository
from weft_adapters.merge import MergeJob
from weft_adapters.source import load_verified
from weft_adapters.store import FolderStore

MAX_BYTES = 100_000
SEED = 7
SOURCE = HubSource(type="huggingface", repo="org/bot", revision="0" * 40)
Scenario = Callable[[Shelf, TenantOwner], Awaitable[None]]


class Killing(Coroutine[Any, Any, Any]):
    """A task's coroutine; the process ends at its `point`th stop, counted over all tasks.

    A step has two: before it goes on, when what it waited for is done, and when it waits again,
    when what it waits for has only begun.
    """

    num_stops = 0
    point = -1

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    @classmethod
    def stop(cls) -> None:
        if cls.num_stops == cls.point:
            os.kill(os.getpid(), signal.SIGKILL)
        cls.num_stops += 1

    def send(self, value: Any) -> Any:
        self.stop()
        waits_for = self._coroutine.send(value)
        self.stop()
        return waits_for

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()


def run(work: Coroutine[Any, Any, None], point: int = -1) -> None:
    """Like `asyncio.run`, killed at `point`."""
    Killing.num_stops, Killing.point = 0, point
    with asyncio.Runner() as runner:
        runner.get_loop().set_task_factory(
            lambda loop, coroutine, **options: asyncio.Task(
                Killing(coroutine),
                loop=loop,
                **options,
            )
        )
        runner.run(work)


def shelf_in(folder: Path) -> Shelf:
    database = Database(sqlite_url(folder / "weft.db"))
    return Shelf(folder, database, FolderStore(folder / "store"))


def uploads_of(shelf: Shelf) -> Uploads:
    folder = shelf.root / "uploads"
    parts = FolderPartStore(folder / "parts")
    return Uploads(shelf.database, parts, folder, MAX_BYTES, shelf.quota, 3600)


class LocalReader:
    """A source that is here."""

    async def check(self, session: AsyncSession, owner: Owner, source: Source) -> None:
        """Everything is allowed."""

    async def read(self, owner: Owner, source: Source, folder: Path) -> None:
        for name, data in create_lora(SEED).items():
            await asyncio.to_thread((folder / name).write_bytes, data)

    async def on_ready(self, owner: Owner, source: Source) -> None:
        """Nothing was kept."""


async def multipart(files: dict[str, bytes]) -> AsyncIterator[bytes]:
    for name, data in files.items():
        head = f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'
        yield head.encode() + data[:100]
        yield data[100:] + b"\r\n"
    yield b"--b--\r\n"


BODY_TYPE = "multipart/form-data; boundary=b"


def create_claim(owner: TenantOwner) -> Claim:
    claim = Claim(bytes(32), owner.tenant_id, "POST versions", "key")
    claim.about("the one that every scenario asks for")
    return claim


async def find_answer(shelf: Shelf, owner: TenantOwner) -> Answer | None:
    async with shelf.database.reading() as session:
        return await create_claim(owner).find(session)


def keep_for(owner: TenantOwner) -> Keep:
    async def keep(session: AsyncSession, published: Published) -> None:
        await create_claim(owner).keep(session, Answer(published.status_code, published.version.id))

    return keep


async def upload(shelf: Shelf, owner: TenantOwner) -> None:
    if await find_answer(shelf, owner) is not None:
        return
    body = multipart(create_lora(SEED))
    async with receive_adapter(BODY_TYPE, body, shelf.root / "uploads", MAX_BYTES) as files:
        await shelf.publisher.publish(owner, "bot", files, keep_for(owner))


async def move_alias(shelf: Shelf, owner: TenantOwner) -> None:
    async with shelf.database.writing() as session:
        await aliases.set_alias(session, owner, "bot", "prod", 2)


async def import_version(shelf: Shelf, owner: TenantOwner) -> None:
    importer = Importer(
        shelf.database, shelf.publisher, LocalReader(), shelf.root / "uploads", lambda digest: None
    )
    if await find_answer(shelf, owner) is None:
        await importer.submit(owner, "bot", SOURCE, keep_for(owner))
    await finish_imports(shelf, importer)


async def finish_imports(shelf: Shelf, importer: Importer | None = None) -> None:
    importer = importer or Importer(
        shelf.database, shelf.publisher, LocalReader(), shelf.root / "uploads", lambda digest: None
    )
    task = asyncio.create_task(importer.run())
    while True:
        async with shelf.database.reading() as session:
            pending = await MaintenanceRepository(session).list_pending()
        if not pending and not importer.num_running:
            break
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def upload_parts(shelf: Shelf, owner: TenantOwner) -> None:
    uploads = uploads_of(shelf)
    begun = await uploads.create(owner, "adapter_model.safetensors", 8, "")
    part_ids = []
    for data in (b"0123", b"4567"):
        part = await uploads.add_part(owner, begun.id, BODY_TYPE, multipart({"data": data}))
        part_ids.append(part.id)
    await uploads.complete(owner, begun.id, part_ids, None)
    await uploads.cancel(owner, begun.id)


async def delete_and_purge(shelf: Shelf, owner: TenantOwner) -> None:
    await shelf.delete_version(owner, "bot", 2)
    await shelf.purger.purge(0)


async def merge(shelf: Shelf, owner: TenantOwner) -> None:
    async def write_files(job: MergeJob, timeout_s: float) -> None:
        for name, data in create_lora(SEED).items():
            await asyncio.to_thread((Path(job.output_dir) / name).write_bytes, data)

    merger = Merger(
        shelf.database, shelf.publisher, shelf.store, shelf.root / "uploads", HF_CONFIG,
        MergeLimits(MAX_BYTES), write_files,
    )  # fmt: skip
    await merger.resolve(owner, WantedMerge(("bot@v1", "bot@v3"), (1.0, 1.0)))
    await merger.close()


SCENARIOS: dict[str, Scenario] = {
    "upload": upload,
    "merge": merge,
    "alias": move_alias,
    "import": import_version,
    "parts": upload_parts,
    "purge": delete_and_purge,
}


async def prepare_folder(folder: Path) -> None:
    """A tenant with versions 1, 2 and 3; "prod" is at 1, "default" at 3."""
    prepare(sqlite_url(folder / "weft.db"))
    shelf = shelf_in(folder)
    owner = await shelf.tenant("acme", "bot")
    for seed in (1, 2, 3):
        await shelf.publish(owner, "bot", seed)
    async with shelf.database.writing() as session:
        await aliases.set_alias(session, owner, "bot", "prod", 1)
    await shelf.database.close()


async def owner_in(shelf: Shelf) -> TenantOwner:
    async with shelf.database.reading() as session:
        tenant = await TenantRepository(session).find_tenant("acme")
        assert tenant is not None
        return TenantOwner(tenant.id)


async def play(folder: Path, scenario: Scenario) -> None:
    shelf = shelf_in(folder)
    await scenario(shelf, await owner_in(shelf))
    await shelf.database.close()


async def versions(shelf: Shelf) -> list[AdapterVersion]:
    async with shelf.database.reading() as session:
        statement = unscoped(select(AdapterVersion), "all that there are")
        return list((await session.scalars(statement)).all())


async def check_consistency(shelf: Shelf, owner: TenantOwner) -> None:
    """What holds after a start, before anything is swept."""
    for version in await versions(shelf):
        if version.state == VersionState.READY:
            assert version.digest is not None
            load_verified(shelf.store.open(version.digest), version.digest, SPEC)
    async with shelf.database.reading() as session:
        adapter = await get_adapter(session, owner, "bot")
        repository = RegistryRepository(session, owner)
        for alias, number in await repository.list_aliases(adapter):
            found = await repository.find_version(adapter, number)
            assert found is not None
            assert found.state == VersionState.READY, f"{alias.name} is at a {found.state} version"


async def check_nothing_left(shelf: Shelf) -> None:
    """What holds after the sweeper: all files are of versions that are ready."""
    found = await versions(shelf)
    ready = {v.digest for v in found if v.state == VersionState.READY}
    assert set(shelf.store.list_digests()) == ready
    assert not [v for v in found if v.state in (VersionState.UPLOADING, VersionState.VALIDATING)]
    left = [path for path in (shelf.root / "store").iterdir() if path.name.startswith(".incoming")]
    assert left == []
    assert list((shelf.root / "uploads").glob("upload-*")) == []


async def restart(folder: Path, scenario: Scenario) -> None:
    """The next start, its sweeper, and the same once more."""
    sweep_uploads(folder / "uploads")
    shelf = shelf_in(folder)
    owner = await owner_in(shelf)
    await recover(shelf.database)
    await check_consistency(shelf, owner)
    await finish_imports(shelf)
    await shelf.purger.purge(0)
    await uploads_of(shelf).sweep()
    await check_nothing_left(shelf)
    if scenario is not delete_and_purge:
        await scenario(shelf, owner)
        await check_consistency(shelf, owner)
    digests = [v.digest for v in await versions(shelf) if v.state == VersionState.READY]
    assert len(set(digests)) == len(digests), "one upload became two versions"
    if scenario in (upload, import_version, merge):
        assert len(digests) == 4
    await check_answer(shelf, owner, scenario)
    await check_uploads(shelf)
    await shelf.database.close()


async def check_answer(shelf: Shelf, owner: TenantOwner, scenario: Scenario) -> None:
    """What the key's request was answered is so: its version is there, once, and ready."""
    if scenario not in (upload, import_version):
        return
    answer = await find_answer(shelf, owner)
    assert answer is not None, "a version is ready, or promised, without its answer"
    (version,) = (v for v in await versions(shelf) if v.id == answer.body)
    assert version.state == VersionState.READY
    if scenario is import_version:
        assert len(await versions(shelf)) == 4, "one key made two versions"


async def check_uploads(shelf: Shelf) -> None:
    """An upload that is open has all its parts; when it has expired, nothing is left of any."""
    kept = shelf.root / "uploads" / "parts"
    async with shelf.database.writing() as session:
        statement = unscoped(select(Upload), "all that there are")
        uploads = list((await session.scalars(statement)).all())
        parts = list((await session.scalars(unscoped(select(UploadPart), "all"))).all())
        for upload in uploads:
            upload.expires_at = 0
    is_open = {upload.id for upload in uploads if upload.status in ("pending", "completed")}
    for part in parts:
        assert part.upload_id in is_open, "parts of an upload that is over are listed"
        assert (kept / part.upload_id / part.id).stat().st_size == part.num_bytes
    await uploads_of(shelf).sweep()
    assert list(kept.glob("*")) == []


def in_child(work: Callable[[], None]) -> int:
    """The exit code of a process that does `work`; negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(template: Path, folder: Path, scenario: Scenario, point: int) -> bool:
    """False when the scenario was over before `point`."""
    shutil.copytree(template, folder)
    code = in_child(lambda: run(play(folder, scenario), point))
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the scenario failed with {code} before point {point}")
    if in_child(lambda: run(restart(folder, scenario))) != 0:
        raise SystemExit(f"killed at {point}, the next start found the above")
    shutil.rmtree(folder)
    return code != 0


def main(root: Path, *stops: str) -> None:
    template = root / "template"
    template.mkdir(parents=True)
    # in a child: its database has threads
    if in_child(lambda: run(prepare_folder(template))) != 0:
        raise SystemExit("the template could not be made")
    for stop in stops:
        name, _, point = stop.partition(":")
        folder, scenario = root / stop, SCENARIOS[name]
        if point:
            num_killed = int(kill_at(template, folder, scenario, int(point)))
        else:
            num_killed = 0
            while kill_at(template, folder, scenario, num_killed):
                num_killed += 1
        print(stop, num_killed)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
