"""The engine's pins are those that the table of versions says, also after a restart."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from weft.db.scope import Owner
from weft.registry import service
from weft.registry.pinning import Pins


async def set_pinned(shelf: Any, owner: Owner, number: int, is_pinned: bool) -> str:
    async with shelf.database.writing() as session:
        _, version = await service.set_pinned(session, owner, "bot", number, is_pinned, shelf.quota)
        assert version.digest is not None
        return version.digest


async def test_the_engine_is_told_what_is_pinned_now(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    for seed in (1, 2):
        await shelf.publish(acme, "bot", seed)
    told: list[set[str]] = []

    async def pin(digests: Collection[str]) -> None:
        told.append(set(digests))

    pins = Pins(shelf.database, shelf.base.digest, pin)
    await pins.reconcile()
    first = await set_pinned(shelf, acme, 1, True)
    await pins.reconcile()
    # of another base, whose versions are not served
    await Pins(shelf.database, "sha256:another", pin).reconcile()
    assert told == [set(), {first}, set()]
    await set_pinned(shelf, acme, 1, False)
    second = await set_pinned(shelf, acme, 2, True)
    # another process, that knows nothing of what was told before
    await Pins(shelf.database, shelf.base.digest, pin).reconcile()
    await shelf.delete_adapter(acme, "bot")
    await pins.reconcile()
    assert told[3:] == [{second}, set()]
