"""Deleted versions keep their files for a while, and other versions keep theirs for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from weft.registry.maintenance_repository import MaintenanceRepository
from weft.tenancy.service import delete_tenant
from weft_adapters.store import FolderStore

LONG_S = 3600.0


async def test_files_go_after_the_retention_time(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    first = (await shelf.publish(acme, "bot", 1)).version
    second = (await shelf.publish(acme, "bot", 2)).version
    await shelf.delete_version(acme, "bot", 1)
    assert (await shelf.version(acme, "bot", 1)).state == "archived"
    assert (await shelf.purger.purge(LONG_S)).num_versions == 0
    assert shelf.store.list_digests() == sorted([first.digest, second.digest])
    done = await shelf.purger.purge(0)
    assert (done.num_versions, done.num_digests) == (1, 1)
    assert shelf.store.list_digests() == [second.digest]
    assert shelf.purged == [first.digest]
    purged = await shelf.version(acme, "bot", 1)
    assert (purged.state, purged.digest) == ("purged", first.digest)
    assert (await shelf.purger.purge(0)).num_versions == 0


async def test_files_stay_while_any_tenants_version_has_the_digest(shelf: Any) -> None:
    acme, other = await shelf.tenant("acme", "bot"), await shelf.tenant("other", "theirs")
    digest = (await shelf.publish(acme, "bot")).version.digest
    assert (await shelf.publish(other, "theirs")).version.digest == digest
    await shelf.delete_adapter(acme, "bot")
    done = await shelf.purger.purge(0)
    assert (done.num_versions, done.num_digests) == (1, 0)
    assert shelf.store.exists(digest)
    # deleted, but within its retention time, is had, too
    await shelf.delete_adapter(other, "theirs")
    assert (await shelf.purger.purge(LONG_S)).num_digests == 0
    assert shelf.store.exists(digest)
    assert (await shelf.purger.purge(0)).num_digests == 1
    assert not shelf.store.exists(digest)


async def test_requests_in_flight_keep_the_files(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    digest = (await shelf.publish(acme, "bot")).version.digest
    await shelf.delete_adapter(acme, "bot")
    shelf.digests_in_use.add(digest)
    assert (await shelf.purger.purge(0)).num_deferred == 1
    assert shelf.store.exists(digest)
    shelf.digests_in_use.clear()
    assert (await shelf.purger.purge(0)).num_digests == 1
    assert shelf.store.list_digests() == []


async def test_an_upload_of_bytes_that_are_being_removed_waits(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    digest = (await shelf.publish(acme, "bot")).version.digest
    await shelf.delete_adapter(acme, "bot")
    async with shelf.database.writing() as session:  # as a purge that was killed half-way
        await MaintenanceRepository(session).begin_purge(digest, 1)
    other = await shelf.tenant("other", "bot")
    upload = asyncio.create_task(shelf.publish(other, "bot"))
    await asyncio.sleep(0.2)
    assert not upload.done()
    assert (await shelf.purger.purge(0)).num_digests == 1
    assert (await upload).version.state == "ready"
    assert shelf.store.list_digests() == [digest]


class StuckStore(FolderStore):
    """One version cannot be removed."""

    stuck = ""

    def delete(self, digest: str) -> None:
        if digest == self.stuck:
            raise PermissionError(13, "Permission denied")
        super().delete(digest)


async def test_files_that_cannot_be_removed_hold_up_no_others(
    shelf: Any, caplog: pytest.LogCaptureFixture
) -> None:
    acme = await shelf.tenant("acme", "bot")
    digests = [(await shelf.publish(acme, "bot", seed)).version.digest for seed in (1, 2)]
    await shelf.delete_adapter(acme, "bot")
    shelf.store = StuckStore(shelf.root / "store")
    shelf.store.stuck = min(digests)
    done = await shelf.purger.purge(0)
    assert (done.num_digests, done.num_deferred) == (1, 1)
    assert "could not be removed" in caplog.text
    assert shelf.store.list_digests() == [min(digests)]
    shelf.store.stuck = ""
    assert (await shelf.purger.purge(0)).num_digests == 1
    assert shelf.store.list_digests() == []


async def test_a_deleted_tenants_versions_are_purged(shelf: Any) -> None:
    acme, other = await shelf.tenant("acme", "bot"), await shelf.tenant("other", "bot")
    await shelf.publish(acme, "bot", 1)
    kept = (await shelf.publish(other, "bot", 2)).version.digest
    async with shelf.database.writing() as session:
        await delete_tenant(session, "acme")
    assert (await shelf.purger.purge(LONG_S)).num_versions == 0
    assert (await shelf.purger.purge(0)).num_versions == 1
    assert shelf.store.list_digests() == [kept]
