"""The same request again has one effect and one answer, on both databases and in two processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from tests.idempotency.shop import SECRET, Shop, open_shop

from weft.db.ids import now
from weft.db.leases import take
from weft.db.scope import unscoped
from weft.idempotency.claims import KEPT_S, Claim
from weft.idempotency.models import KeptAnswer
from weft.idempotency.repository import AnswerRepository


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    async with open_shop(database_url) as shop:
        yield shop


@pytest.fixture
async def other_shop(shop: Shop) -> AsyncIterator[Shop]:
    """Another process over the same database."""
    async with open_shop(shop.url) as other:
        yield other


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def is_replayed(answer: httpx2.Response) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


async def test_the_same_request_again_has_the_same_answer(shop: Shop, other_shop: Shop) -> None:
    first = await shop.post("/things", "k", name="a")
    again = [await each.post("/things", "k", name="a") for each in (shop, other_shop)]
    assert (first.status_code, is_replayed(first)) == (201, False)
    for answer in again:
        assert (answer.status_code, answer.content, is_replayed(answer)) == (
            201,
            first.content,
            True,
        )
        assert answer.headers["content-type"] == first.headers["content-type"]
    assert await shop.sold() == ["a"]
    for _ in range(2):
        assert not is_replayed(await shop.post("/things", name="b"))
    assert await shop.sold() == ["a", "b", "b"]


async def test_a_key_is_for_one_request(shop: Shop) -> None:
    await shop.post("/things", "k", name="a")
    assert code(await shop.post("/things", "k", name="b")) == (409, "idempotency_conflict")
    assert code(await shop.post("/things?x=1", "k", name="a")) == (409, "idempotency_conflict")
    assert (await shop.post("/things", "K", name="b")).status_code == 201
    assert await shop.sold() == ["a", "b"]


async def test_a_key_is_its_callers_and_its_routes(shop: Shop) -> None:
    mine = await shop.post("/things", "k", name="a")
    theirs = await shop.post("/things", "k", "api_key:2", name="other")
    assert (theirs.status_code, is_replayed(theirs)) == (201, False)
    assert theirs.json()["id"] != mine.json()["id"]
    assert not is_replayed(await shop.post("/parcels", "k"))
    assert await shop.sold() == ["a", "other", "parcel"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
async def test_what_is_no_key_is_refused(shop: Shop, key: str) -> None:
    for path in ("/things", "/parcels"):
        answer = await shop._http.post(
            path, json={"name": "a"}, headers=[(b"idempotency-key", key.encode())]
        )
        assert code(answer) == (400, "invalid_value")
        assert answer.json()["error"]["param"] == "Idempotency-Key"
    assert await shop.sold() == []


async def test_two_keys_are_refused(shop: Shop) -> None:
    headers = [("idempotency-key", "a"), ("idempotency-key", "b")]
    answer = await shop._http.post("/things", json={"name": "a"}, headers=headers)
    assert code(answer) == (400, "invalid_value")


async def test_the_same_request_at_the_same_time_has_one_effect(
    shop: Shop, other_shop: Shop
) -> None:
    answers = await asyncio.gather(
        *(each.post("/things", "k", name="a") for each in (shop, other_shop) for _ in range(5))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum(not is_replayed(answer) for answer in answers) == 1
    assert await shop.sold() == ["a"]


async def test_what_is_refused_leaves_its_key_free(shop: Shop) -> None:
    assert code(await shop.post("/things", "k", name="none left")) == (409, "none_left")
    assert code(await shop.post("/things", "k")) == (400, "invalid_value")
    assert (await shop.post("/things", "k", name="a")).status_code == 201
    assert await shop.sold() == ["a"]


async def test_an_effect_whose_answer_cannot_be_kept_is_undone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(AnswerRepository, "keep", fail)
        with pytest.raises(OSError, match="full"):
            await shop.post("/things", "k", name="a")
    assert await shop.sold() == []
    assert not is_replayed(await shop.post("/things", "k", name="a"))


async def test_a_key_is_in_use_while_its_request_is_at_work(shop: Shop, other_shop: Shop) -> None:
    shop.is_delivered.clear()
    at_work = asyncio.create_task(shop.post("/orders", "k", name="a"))
    while not shop.num_orders:
        await asyncio.sleep(0.01)
    refused = await other_shop.post("/orders", "k", name="a")
    assert code(refused) == (409, "idempotency_in_progress")
    assert refused.headers["x-should-retry"] == "true"
    assert int(refused.headers["retry-after"]) > 0
    assert (await other_shop.post("/orders", "k2", name="b")).status_code == 200
    shop.is_delivered.set()
    first = await at_work
    again = await other_shop.post("/orders", "k", name="a")
    assert (again.content, is_replayed(again)) == (first.content, True)
    assert code(await shop.post("/orders", "k", name="b")) == (409, "idempotency_conflict")
    assert (shop.num_orders, other_shop.num_orders) == (1, 1)


async def test_what_a_dead_process_had_begun_is_done_when_its_time_is_over(shop: Shop) -> None:
    claim = Claim(SECRET, "api_key:1", "POST /orders", "k")
    assert await take(shop.database, f"idempotency:{claim.id[:48]}", "the dead", 0.3)
    assert code(await shop.post("/orders", "k", name="a")) == (409, "idempotency_in_progress")
    await asyncio.sleep(0.4)
    assert (await shop.post("/orders", "k", name="a")).status_code == 200
    assert await shop.sold() == ["order"]


async def test_an_answer_that_was_kept_with_its_effect_is_given_though_the_rest_failed(
    shop: Shop,
) -> None:
    shop.loses_parcels = True
    assert code(await shop.post("/parcels", "k")) == (409, "lost")
    shop.loses_parcels = False
    again = await shop.post("/parcels", "k")
    assert (again.status_code, is_replayed(again)) == (201, True)
    assert again.headers["location"] == f"/parcels/{again.json()['id']}"
    assert await shop.sold() == ["parcel"]


async def test_an_answer_is_good_for_a_day_and_is_then_swept(shop: Shop) -> None:
    async def age(session: AsyncSession) -> None:
        statement = update(KeptAnswer).values(created_at=now() - KEPT_S)
        await session.execute(unscoped(statement, "a test"))

    await shop.post("/things", "k", name="a")
    await shop.database.write(age)
    again = await shop.post("/things", "k", name="b")
    assert (again.status_code, is_replayed(again)) == (201, False)
    assert is_replayed(await shop.post("/things", "k", name="b"))
    await shop.database.write(age)
    await shop.database.write(lambda session: AnswerRepository(session).delete_before(now()))
    async with shop.database.reading() as session:
        assert (await session.scalars(unscoped(select(KeptAnswer), "all"))).all() == []


async def test_an_answer_is_kept_so_that_the_database_alone_tells_nothing(shop: Shop) -> None:
    answer = await shop.post("/things", "the-clients-key", name="a")
    async with shop.database.reading() as session:
        (row,) = (await session.scalars(unscoped(select(KeptAnswer), "all that there are"))).all()
    for secret in (answer.json()["secret"], "the-clients-key", "api_key:1"):
        assert secret not in f"{row.id} {row.sealed}"
