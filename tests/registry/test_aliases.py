"""Aliases move atomically, and only from where the caller thinks they are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from weft.errors import ConflictError, InvalidRequestError, NotFoundError
from weft.registry import aliases
from weft.registry.service import resolve_model


async def move(shelf: Any, owner: Any, alias: str, number: int, *expected: int | None) -> int:
    async with shelf.database.writing() as session:
        found = await aliases.set_alias(session, owner, "bot", alias, number, *expected)
        return int(found[2].number)


async def numbers(shelf: Any, owner: Any, *names: str) -> list[int | None]:
    async with shelf.database.reading() as session:
        return [
            (await resolve_model(session, owner, shelf.base, f"bot@{name}")).version
            for name in names
        ]


async def test_an_alias_moves_from_the_expected_version_only(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    for seed in (1, 2, 3):
        await shelf.publish(acme, "bot", seed)
    await move(shelf, acme, "prod", 1, None)
    for wrong in (None, 2):
        with pytest.raises(ConflictError, match="is at version 1") as caught:
            await move(shelf, acme, "prod", 3, wrong)
        assert (caught.value.code, caught.value.param) == ("version_conflict", "expected_version")
    assert await numbers(shelf, acme, "prod", "default") == [1, 3]
    await move(shelf, acme, "prod", 2, 1)
    await move(shelf, acme, "prod", 3)
    assert await numbers(shelf, acme, "prod") == [3]


async def test_of_many_moves_from_one_version_one_succeeds(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    for seed in (1, 2, 3, 4):
        await shelf.publish(acme, "bot", seed)
    await move(shelf, acme, "prod", 1)
    moves = [move(shelf, acme, "prod", number, 1) for number in (2, 3, 4)]
    outcomes = await asyncio.gather(*moves, return_exceptions=True)
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert await numbers(shelf, acme, "prod") == [winner]


@pytest.mark.parametrize("name", ["v3", "Prod", "a/b", "", "a..b", "a" * 64])
async def test_an_alias_is_no_version_and_no_path(shelf: Any, name: str) -> None:
    acme = await shelf.tenant("acme", "bot")
    await shelf.publish(acme, "bot")
    with pytest.raises(InvalidRequestError) as caught:
        await move(shelf, acme, name, 1)
    assert caught.value.param == "alias"


async def test_an_alias_points_at_versions_of_its_own_adapter_that_are_ready(shelf: Any) -> None:
    acme, other = await shelf.tenant("acme", "bot", "box"), await shelf.tenant("other", "bot")
    for seed in (1, 2):
        await shelf.publish(acme, "bot", seed)
    await shelf.publish(other, "bot", 3)
    with pytest.raises(NotFoundError):
        await move(shelf, other, "prod", 2)
    await shelf.delete_version(acme, "bot", 1)
    with pytest.raises(ConflictError) as caught:
        await move(shelf, acme, "prod", 1)
    assert caught.value.code == "version_not_ready"


async def test_default_follows_the_newest_version_not_the_latest_to_finish(shelf: Any) -> None:
    acme = await shelf.tenant("acme", "bot")
    await shelf.publish(acme, "bot", 1)
    await shelf.publish(acme, "bot", 2)
    await move(shelf, acme, "default", 1, 2)
    await shelf.publish(acme, "bot", 2)  # there already: nothing moves
    assert await numbers(shelf, acme, "default") == [1]
    await shelf.publish(acme, "bot", 3)
    assert await numbers(shelf, acme, "default") == [3]
