"""What a key stands for, and who can open what is kept under it."""

from __future__ import annotations

import itertools

import pytest
from sqlalchemy import select, update

from weft.db.database import Database
from weft.db.scope import unscoped
from weft.errors import ConflictError, InvalidRequestError
from weft.idempotency.claims import Answer, Claim
from weft.idempotency.models import KeptAnswer
from weft.sealing import UnsealError

SECRET = bytes(32)
ANSWER = Answer(201, '{"value": "canary"}', {"location": "/x"})


def claim(*, secret: bytes = SECRET, caller: str = "a", route: str = "POST /x", key: str = "k",
          asked_for: str = "this") -> Claim:  # fmt: skip
    made = Claim(secret, caller, route, key)
    made.about(asked_for)
    return made


async def test_an_answer_is_found_by_the_same_caller_route_key_and_request(
    sqlite_database_url: str,
) -> None:
    database = Database(sqlite_database_url)
    async with database.writing() as session:
        assert await claim().find(session) is None
        await claim().keep(session, ANSWER)
    async with database.reading() as session:
        assert await claim().find(session) == ANSWER
        for other in (
            claim(secret=bytes(31) + b"1"),
            claim(caller="b"),
            claim(route="POST /y"),
            claim(key="K"),
        ):
            assert await other.find(session) is None
        with pytest.raises(ConflictError):
            await claim(asked_for="that").find(session)
    await database.close()


async def test_an_answer_that_was_put_in_anothers_place_is_not_opened(
    sqlite_database_url: str,
) -> None:
    database = Database(sqlite_database_url)
    async with database.writing() as session:
        await claim().keep(session, ANSWER)
        await claim(caller="b").keep(session, ANSWER)
        rows = (await session.scalars(unscoped(select(KeptAnswer), "all"))).all()
        first, second = (row.sealed for row in rows)
        assert first != second
        await session.execute(unscoped(update(KeptAnswer).values(sealed=first), "all"))
        num_opened = 0
        for caller in ("a", "b"):
            try:
                num_opened += await claim(caller=caller).find(session) is not None
            except UnsealError:
                continue
        assert num_opened == 1
    await database.close()


def test_what_belongs_to_a_key_cannot_be_spelled_by_another() -> None:
    parts = ("a", "b", '","', "a b")
    ids = {Claim(SECRET, *each, "k").id for each in itertools.product(parts, parts)}
    assert len(ids) == len(parts) ** 2


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "\x7f", "é", "x" * 256])
def test_a_key_is_visible_and_bounded(key: str) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 255"):
        Claim(SECRET, "a", "POST /x", key)
    Claim(SECRET, "a", "POST /x", "x" * 255)
