"""The engine's pins are those that the table of versions says, also after a restart."""

from __future__ import annotations

from typing import Any

from weft.db.scope import Owner
from weft.registry import service
from weft.registry.pinning import Pins


async def set_pinned(shelf: Any, owner: Owner, number: int, is_pinned: bool) -> str:
    async with shelf.database.writing() as session:
        _, version = await service.set_pinned(session, owner, "bot", number, is_pinned, shelf.quota)
        assert version.digest is not None
        return version.digest


async def test_pins_are_told_once_and_taken_back(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    for seed in (1, 2):
        await shelf.publish(acme, "bot", seed)
    told: list[tuple[str, bool]] = []

    def pins(base_digest: str = shelf.base.digest) -> Pins:
        return Pins(shelf.database, base_digest, lambda digest, on: told.append((digest, on)))

    running = pins()
    await running.reconcile()
    assert told == []
    first = await set_pinned(shelf, acme, 1, True)
    await running.reconcile()
    await running.reconcile()
    assert told == [(first, True)]
    told.clear()
    restarted = pins()
    await restarted.reconcile()
    assert told == [(first, True)]
    told.clear()
    await pins("sha256:another").reconcile()  # versions of another base are not served
    assert told == []
    await set_pinned(shelf, acme, 1, False)
    second = await set_pinned(shelf, acme, 2, True)
    await restarted.reconcile()
    assert told == [(first, False), (second, True)]
    told.clear()
    await shelf.delete_adapter(acme, "bot")
    await restarted.reconcile()
    assert told == [(second, False)]
