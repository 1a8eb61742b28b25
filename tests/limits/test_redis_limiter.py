"""What only the limiter in Redis does: its clock, its absence, and its return."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from redis.asyncio.client import Pipeline
from redis.crc import key_slot
from tests.servers import RedisServer

from weft.limits.limiter import Grant, LimiterUnavailableError, Rates, Refusal, Rule
from weft.limits.redis_limiter import RedisLimiter, create_client
from weft.limits.subjects import Subject

RULES = [Rule(Subject("tenant", "t"), Rates(10, 100, 1))]


@pytest.fixture
async def shared(redis_url: str) -> AsyncIterator[list[RedisLimiter]]:
    """Four workers' limiters."""
    limiters = [RedisLimiter(create_client(redis_url)) for _ in range(4)]
    yield limiters
    for limiter in limiters:
        await limiter.close()


@pytest.fixture
def server(create_redis: Callable[[], RedisServer]) -> Iterator[RedisServer]:
    server = create_redis()
    server.start()
    yield server
    server.close()


async def test_workers_share_the_counts(shared: list[RedisLimiter]) -> None:
    rules = [Rule(Subject("tenant", "t"), Rates(10, None, None))]
    answers = await asyncio.gather(
        *(shared[i % 4].reserve(rules, {f"r{i}": 1}) for i in range(200))
    )
    assert sum(isinstance(answer, Grant) for answer in answers) == 10


async def test_the_time_is_redis_own(shared: list[RedisLimiter]) -> None:
    granted = await shared[0].reserve(RULES, {"a": 1})
    assert isinstance(granted, Grant)
    assert abs(granted.reservations[0].step / 10 - time.time()) < 60


async def test_keys_go_when_nothing_counts_any_more(
    shared: list[RedisLimiter], redis_url: str
) -> None:
    granted = await shared[0].reserve(RULES, {"a": 1})
    assert isinstance(granted, Grant)
    with redis.Redis.from_url(redis_url) as client:
        keys = list(client.scan_iter())
        assert len(keys) == 6
        assert all(0 < client.pttl(key) <= 91_000 for key in keys)
        # in a cluster all of them are on one node
        assert len({key_slot(key) for key in keys}) == 1


async def test_an_attempt_whose_answer_was_lost_is_not_counted_twice(
    shared: list[RedisLimiter],
) -> None:
    answers = [await shared[0].reserve(RULES, {"a": 60}) for _ in range(2)]
    for answer in answers:
        assert isinstance(answer, Grant)
        assert answer.states[0].tokens is not None
        assert answer.states[0].tokens.remaining == 40
    assert len({answer.reservations for answer in answers if isinstance(answer, Grant)}) == 1


async def test_a_redis_that_stops_says_so_and_one_that_starts_again_is_used(
    server: RedisServer,
) -> None:
    limiter = RedisLimiter(create_client(server.url))
    granted = await limiter.reserve(RULES, {"a": 1})
    assert isinstance(granted, Grant)
    server.stop()
    for call in (
        limiter.reserve(RULES, {"b": 1}),
        limiter.settle(granted.reservations[0], 1),
        limiter.renew(granted.reservations),
        limiter.peek(RULES),
    ):
        with pytest.raises(LimiterUnavailableError):
            await call
    server.start()
    # what it forgot with its memory, those who still run bring back
    await limiter.renew(granted.reservations)
    refused = await limiter.reserve(RULES, {"b": 1})
    assert isinstance(refused, Refusal)
    assert refused.dimension == "running"
    await limiter.settle(granted.reservations[0], 1)
    assert isinstance(await limiter.reserve(RULES, {"b": 1}), Grant)
    await limiter.close()


async def test_a_place_given_back_while_it_is_renewed_stays_free(redis_url: str) -> None:
    client = create_client(redis_url)
    limiter = RedisLimiter(client)
    granted = await limiter.reserve(RULES, {"a": 50})
    assert isinstance(granted, Grant)
    (held,) = granted.reservations
    is_settled = asyncio.Event()
    create_pipeline = client.pipeline

    def create_late_pipeline(transaction: bool) -> Pipeline:
        pipeline = create_pipeline(transaction=transaction)
        execute = pipeline.execute

        async def execute_late(raise_on_error: bool = True) -> list[Any]:
            await is_settled.wait()
            return list(await execute(raise_on_error))

        pipeline.execute = execute_late  # type: ignore[method-assign]
        return pipeline

    client.pipeline = create_late_pipeline  # type: ignore[method-assign, assignment]
    renewal = asyncio.create_task(limiter.renew([held]))
    await asyncio.sleep(0)
    await limiter.settle(held, 50)
    is_settled.set()
    await renewal
    granted = await limiter.reserve(RULES, {"b": 50})
    assert isinstance(granted, Grant)
    assert granted.states[0].tokens is not None
    assert granted.states[0].tokens.remaining == 0  # and what it took is taken still
    await limiter.close()
