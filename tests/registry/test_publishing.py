"""One upload, one version; the same again, or half of one, is none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from weft.errors import AdapterInvalidError, ConflictError, QuotaExceededError
from weft.registry.publishing import Published
from weft.registry.quota import Quota
from weft_adapters.store import FolderStore


async def test_the_same_bytes_at_the_same_time_are_one_version(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    outcomes = await asyncio.gather(*(shelf.publish(acme, "bot") for _ in range(5)))
    assert sorted(p.status_code for p in outcomes) == [200, 200, 200, 200, 201]
    assert {p.version.number for p in outcomes} == {1}
    assert {p.version.state for p in outcomes} == {"ready"}


async def test_the_same_bytes_again_heal_what_was_damaged_in_the_store(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    digest = (await shelf.publish(acme, "bot")).version.digest
    tensors = shelf.store.open(digest).tensors_path
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert (await shelf.publish(acme, "bot")).status_code == 200
    assert shelf.store.open(digest).tensors_path.read_bytes() == whole


async def test_an_outcome_is_kept_once_its_version_is_ready(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    kept: list[tuple[int, str]] = []

    async def keep(_session: AsyncSession, published: Published) -> None:
        kept.append((published.version.number, published.version.state))

    await shelf.publish(acme, "bot", 1, keep)
    assert kept == [(1, "ready")]
    # nothing has come of it, so nothing has to be kept with it
    assert (await shelf.publish(acme, "bot", 1, keep)).status_code == 200
    assert kept == [(1, "ready")]


async def test_a_version_whose_outcome_cannot_be_kept_does_not_become_ready(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")

    async def fail(_session: AsyncSession, _published: Published) -> None:
        raise OSError("no room for the answer")

    with pytest.raises(OSError, match="no room"):
        await shelf.publish(acme, "bot", 1, fail)
    assert (await shelf.version(acme, "bot", 1)).state == "rejected"
    assert (await shelf.publish(acme, "bot", 1)).version.number == 2


async def test_a_refused_upload_takes_no_number(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    too_high = shelf.files(1, rank=32)
    with pytest.raises(AdapterInvalidError):
        await shelf.publisher.publish(acme, "bot", too_high)
    assert (await shelf.publish(acme, "bot", 2)).version.number == 1


class FullStore(FolderStore):
    """A disk without room."""

    def put(self, digest: str, config_bytes: bytes, tensors_path: Path) -> None:
        raise OSError(28, "No space left on device")


async def test_a_store_that_fails_leaves_a_rejected_version_that_can_be_tried_again(
    shelf: Any,
) -> None:
    acme = await shelf.tenant("acme", "bot")
    working, shelf.store = shelf.store, FullStore(shelf.root / "store")
    with pytest.raises(OSError, match="No space"):
        await shelf.publish(acme, "bot")
    refused = await shelf.version(acme, "bot", 1)
    assert refused.state == "rejected"
    assert [fault["code"] for fault in refused.report["faults"]] == ["not_stored"]
    shelf.store = working
    again = await shelf.publish(acme, "bot")
    assert (again.version.number, again.status_code) == (2, 201)
    await shelf.purger.purge(0)
    assert shelf.store.list_digests() == [again.version.digest]


class DeletingStore(FolderStore):
    """Lets a test delete the adapter while its bytes are stored."""

    shelf: Any
    owner: Any

    def put(self, digest: str, config_bytes: bytes, tensors_path: Path) -> None:
        super().put(digest, config_bytes, tensors_path)
        asyncio.run_coroutine_threadsafe(
            self.shelf.delete_adapter(self.owner, "bot"), self.loop
        ).result()

    loop: asyncio.AbstractEventLoop


async def test_an_adapter_deleted_during_its_upload_gets_no_version(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    store = DeletingStore(shelf.root / "store")
    store.shelf, store.owner, store.loop = shelf, acme, asyncio.get_running_loop()
    shelf.store = store
    with pytest.raises(ConflictError) as caught:
        await shelf.publish(acme, "bot")
    assert caught.value.code == "version_deleted"
    await shelf.purger.purge(0)
    assert store.list_digests() == []


async def test_a_tenant_has_so_many_versions_and_bytes_and_no_more(shelf: Any) -> None:
    acme, other = await shelf.tenant("acme", "bot"), await shelf.tenant("other", "bot")
    num_bytes = (await shelf.publish(acme, "bot", 1)).version.num_bytes
    shelf.quota = Quota(max_versions=1)
    with pytest.raises(QuotaExceededError, match="versions"):
        await shelf.publish(acme, "bot", 2)
    assert (await shelf.publish(acme, "bot", 1)).status_code == 200
    shelf.quota = Quota(max_stored_bytes=2 * num_bytes - 1)
    with pytest.raises(QuotaExceededError, match="bytes"):
        await shelf.publish(acme, "bot", 2)
    # another tenant has room of its own
    assert (await shelf.publish(other, "bot", 2)).status_code == 201
