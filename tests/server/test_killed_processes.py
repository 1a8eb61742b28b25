"""The engine behind several workers dies while they are asked: no event is lost or doubled, and
nobody pays for what was not finished."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.server.callers import ADAPTER, Answer, Callers, check_answers
from tests.usage.conftest import Meter, open_meter

from weft.db.database import Database
from weft.demo import BASE_NAME
from weft.usage.verification import verify

if TYPE_CHECKING:
    from tests.server.conftest import Site

NUM_ROUNDS = 6
TIMEOUT_S = 90.0


@dataclass
class Played:
    """A server of several processes, a tenant of it, and what its callers were told."""

    site: Site
    database_url: str
    tenant_id: str
    key: str
    choose: random.Random
    answers: list[Answer] = field(default_factory=list)

    def kill_under_load(self, pid: int) -> None:
        callers = Callers(self.site.url, self.key, random.Random(self.choose.random()))

        async def kill() -> None:
            await callers.wait_for(self.choose.randrange(1, 20))
            await asyncio.sleep(self.choose.uniform(0.0, 0.1))
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.2)

        asyncio.run(callers.run(kill()))
        self.answers += callers.answers

    async def check(self) -> None:
        meter = Meter(Database(self.database_url), self.tenant_id)
        async with asyncio.timeout(TIMEOUT_S):
            while await meter.num_pending():
                await asyncio.sleep(0.1)
        await check_answers(meter, self.answers)
        for result in await verify(meter.database):
            assert result.is_clean, result
        await meter.database.close()


async def _open_books(url: str) -> str:
    """A tenant with a budget, and a price of the base. The tenant's id."""
    meter = await open_meter(url)
    await meter.set_price(base=BASE_NAME)
    await meter.set_budget(10**12)
    await meter.database.close()
    return meter.tenant_id


@pytest.fixture
def played(
    create_site: type[Site], postgres_url: str, redis_url: str, tmp_path: Path
) -> Iterator[Played]:
    environment = {
        "WEFT_DATABASE_URL": postgres_url,
        "WEFT_REDIS_URL": redis_url,
        "WEFT_MASTER_SECRET": secrets.token_hex(32),
    }
    tenant_id = asyncio.run(_open_books(postgres_url))
    site = create_site(tmp_path / "data", environment=environment)
    site.start()
    with site.admin() as http:
        key = http.post(f"/admin/v1/tenants/{tenant_id}/keys", json={}).json()["value"]
    assert site.upload(key, ADAPTER).status_code == 201
    yield Played(site, postgres_url, tenant_id, key, random.Random(31))
    assert site.send(signal.SIGTERM) == 0


@pytest.mark.verify
def test_when_the_engine_dies_no_event_is_lost_or_doubled(played: Played) -> None:
    for _ in range(NUM_ROUNDS):
        (pid,) = played.site.pids("engine_process")
        played.kill_under_load(pid)
        played.site.wait(lambda gone=pid: gone not in played.site.pids("engine_process"))
        played.site.wait(played.site.is_ready)
        asyncio.run(played.check())
    assert sum(answer.tokens is not None for answer in played.answers) >= NUM_ROUNDS
