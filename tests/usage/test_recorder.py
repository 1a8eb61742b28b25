"""Every request that reached the engine is exactly one event, through retries and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from weft.db.database import Database
from weft.db.scope import TenantOwner, unscoped
from weft.messages import Usage
from weft.tenancy import service
from weft.usage.models import UsageEvent, UsagePending
from weft.usage.repository import UsageRepository
from weft.usage.service import MeteredRequest, UsageRecorder


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture
async def tenant_id(database: Database) -> str:
    async with database.writing() as session:
        return (await service.create_tenant(session, "acme")).id


def request(event_id: str, tenant_id: str) -> MeteredRequest:
    return MeteredRequest(event_id, tenant_id, "proj", "key", "bot@v1", "tiny", "adp", 1, "sha")


async def started(database: Database) -> UsageRecorder:
    recorder = UsageRecorder(database)
    await recorder.start()
    return recorder


async def rows(database: Database) -> tuple[list[UsageEvent], int]:
    async with database.reading() as session:
        ordered = select(UsageEvent).order_by(UsageEvent.event_id)
        events = list(await session.scalars(unscoped(ordered, "a test")))
        pending = list(await session.scalars(unscoped(select(UsagePending), "a test")))
        return events, len(pending)


async def test_a_request_is_pending_first_and_then_one_event(
    database: Database, tenant_id: str
) -> None:
    recorder = await started(database)
    req = request("r1", tenant_id)
    await recorder.begin([req])
    assert await rows(database) == ([], 1)
    for _ in range(2):  # a retry changes nothing
        await recorder.finish(req, Usage(5, 7, 2), "stop", "ok")
    (event,), num_pending = await rows(database)
    assert num_pending == 0
    assert (event.prompt_tokens, event.completion_tokens, event.cached_prompt_tokens) == (5, 7, 2)
    assert (event.outcome, event.finish_reason, event.adapter_digest) == ("ok", "stop", "sha")
    assert event.ended_at_ms >= event.started_at_ms > 0


async def test_a_request_the_engine_never_took_is_forgotten(
    database: Database, tenant_id: str
) -> None:
    recorder = await started(database)
    both = [request("r1", tenant_id), request("r2", tenant_id)]
    await recorder.begin(both)
    await recorder.forget(both[1:])
    await recorder.finish(both[1], Usage(1, 1), "stop", "ok")
    assert await rows(database) == ([], 1)


async def test_what_a_crash_leaves_is_lost_and_free(database: Database, tenant_id: str) -> None:
    recorder = await started(database)
    await recorder.begin([request("r1", tenant_id), request("r2", tenant_id)])
    await recorder.finish(request("r1", tenant_id), Usage(1, 2), "length", "ok")
    assert await UsageRecorder(database).start() == 1
    assert await UsageRecorder(database).start() == 0
    events, num_pending = await rows(database)
    assert num_pending == 0
    assert [event.outcome for event in events] == ["ok", "lost"]
    assert (events[1].prompt_tokens, events[1].completion_tokens) == (0, 0)


async def test_many_at_once_lose_nothing(database: Database, tenant_id: str) -> None:
    recorder = await started(database)

    async def one(i: int) -> None:
        req = request(f"r{i}", tenant_id)
        await recorder.begin([req])
        await recorder.finish(req, Usage(1, i), "stop", "ok")

    await asyncio.gather(*(one(i) for i in range(50)))
    async with database.reading() as session:
        (total,) = await UsageRepository(session).sum_by_model(TenantOwner(tenant_id), None, None)
        none = await UsageRepository(session).sum_by_model(TenantOwner("other"), None, None)
        late = await UsageRepository(session).sum_by_model(TenantOwner(tenant_id), 2**50, None)
    assert (total.num_requests, total.completion_tokens) == (50, sum(range(50)))
    assert none == []
    assert late == []
