"""200 requests at once at a limit of 10: exactly 10 pass, however many processes count."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from weft.demo import BASE_NAME

if TYPE_CHECKING:
    from tests.server.conftest import Site

NUM_REQUESTS, LIMIT = 200, 10


async def _ask_all(url: str, key: str) -> list[httpx2.Response]:
    """Each on a connection of its own, so that the kernel spreads them over the workers."""
    body = {"model": BASE_NAME, "prompt": "a b c", "max_tokens": 4}
    headers = {"authorization": f"Bearer {key}", "connection": "close"}

    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
            return await http.post("/v1/completions", json=body)

    return await asyncio.gather(*(ask() for _ in range(NUM_REQUESTS)))


@pytest.mark.verify
@pytest.mark.parametrize(
    ("num_workers", "has_redis"),
    [(1, False), (1, True), (4, True)],
    ids=["1", "1-redis", "4-redis"],
)
def test_exactly_as_many_pass_as_the_limit_says(
    num_workers: int,
    has_redis: bool,
    create_site: type[Site],
    stores: dict[str, str],
    tmp_path: Path,
) -> None:
    site = create_site(
        tmp_path / "data",
        ["--tenant-requests-per-minute", str(LIMIT)],
        environment=stores if has_redis else {},
        num_workers=num_workers,
    )
    site.start()
    try:
        key = site.create_tenant(f"limited-{num_workers}-{has_redis}")
        answers = asyncio.run(_ask_all(site.url, key))
        assert Counter(answer.status_code for answer in answers) == {
            200: LIMIT,
            429: NUM_REQUESTS - LIMIT,
        }
        for answer in answers:
            assert answer.headers["x-ratelimit-limit-requests"] == str(LIMIT)
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "rate_limit_exceeded"
                assert answer.headers["x-ratelimit-remaining-requests"] == "0"
                assert int(answer.headers["retry-after-ms"]) > 0
        assert site.metric("vllm:request_success_total") == LIMIT
        assert site.metric("vllm:prompt_tokens_total") >= LIMIT
        with site.client(key) as http:
            usage = http.get("/v1/usage").json()["data"][0]["results"]
        assert sum(row["num_model_requests"] for row in usage) == LIMIT
    finally:
        assert site.send(signal.SIGTERM) == 0
