"""Both limiters, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from weft.limits.in_process import InProcessLimiter
from weft.limits.limiter import Limiter
from weft.limits.redis_limiter import RedisLimiter, create_client


@dataclass
class Clock:
    """Milliseconds that pass when the test says so."""

    now_ms: int = 1_763_762_400_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["in process", "redis"])
async def limiter(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Limiter]:
    """The test runs on both."""
    limiter: Limiter = InProcessLimiter(clock)
    if request.param == "redis":
        client = create_client(request.getfixturevalue("redis_url"))
        limiter = RedisLimiter(client, clock_ms=clock)
    yield limiter
    await limiter.close()
