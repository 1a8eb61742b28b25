"""Callers that ask a server without a pause until it dies, and what holds of their answers then."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
from sqlalchemy import text
from tests.usage.conftest import Meter

from weft.db.database import Database
from weft.demo import BASE_NAME

NUM_CALLERS = 6
ADAPTER = "shout"
_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Answer:
    """What a caller knows of a request: its id once the answer has begun, and its (prompt, cached,
    completion) tokens once it has come to its end."""

    request_id: str = ""
    tokens: tuple[int, int, int] | None = None
    error: str = ""


@dataclass
class Callers:
    """Half of them read streams; some streams are left in the middle."""

    url: str
    key: str
    choose: random.Random
    answers: list[Answer] = field(default_factory=list)
    is_over: bool = False

    async def run(self, work: Any) -> None:
        """Ask until `work` is done, and the requests that were under way are over."""
        headers = {"authorization": f"Bearer {self.key}"}
        async with (
            httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=60) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(NUM_CALLERS):
                group.create_task(self._ask_on(http))
            await work
            self.is_over = True

    async def wait_for(self, num_answers: int) -> None:
        """Until so many have come to their end."""
        async with asyncio.timeout(_TIMEOUT_S):
            while sum(answer.tokens is not None for answer in self.answers) < num_answers:
                await asyncio.sleep(0.001)

    async def _ask_on(self, http: httpx2.AsyncClient) -> None:
        while not self.is_over:
            answer = Answer()
            self.answers.append(answer)
            try:
                await self._ask(http, answer)
            except httpx2.TransportError:
                """The server is gone."""
            if answer.tokens is None:
                await asyncio.sleep(0.02)  # as one that backs off

    async def _ask(self, http: httpx2.AsyncClient, answer: Answer) -> None:
        is_stream = self.choose.random() < 0.7
        body: dict[str, Any] = {
            "model": self.choose.choice([BASE_NAME, ADAPTER]),
            "prompt": "wolf apple tiger " * self.choose.randrange(1, 4),
            "max_tokens": self.choose.randrange(1, 60),
            "ignore_eos": True,
        }
        if is_stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        last_line = self.choose.randrange(20) if self.choose.random() < 0.1 else None
        async with http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                answer.error = (await response.aread()).decode()
                return
            answer.request_id = response.headers["x-request-id"]
            if not is_stream:
                answer.tokens = _tokens(json.loads(await response.aread())["usage"])
                return
            usage, num_lines = None, 0
            async for line in response.aiter_lines():
                num_lines += 1
                if num_lines == last_line:
                    return
                if line == "data: [DONE]" and usage is not None and not answer.error:
                    answer.tokens = _tokens(usage)
                elif line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    usage = chunk.get("usage") or usage
                    if "error" in chunk:
                        answer.error = line


def _tokens(usage: dict[str, Any]) -> tuple[int, int, int]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return usage["prompt_tokens"], cached, usage["completion_tokens"]


async def take_for_dead(database: Database, silent_s: float) -> None:
    """So that nobody has to wait a minute until a process has been silent for long enough."""
    silent = text(
        "UPDATE replicas SET heartbeat_at_ms = 0 WHERE closed_at_ms IS NULL AND heartbeat_at_ms <= "
        f"EXTRACT(EPOCH FROM now()) * 1000 - {round(silent_s * 1000)}"
    )
    async with database.writing() as session:
        connection = await session.connection()
        await connection.execute(silent)
        await connection.execute(text("UPDATE leases SET expires_at_ms = 0"))


async def check_answers(meter: Meter, answers: Sequence[Answer]) -> None:
    """Each answer is one event, with the tokens that its caller was told where it was told any;
    what has no end is lost and costs nothing, and nothing is held for it."""
    async with asyncio.timeout(_TIMEOUT_S):
        while await meter.num_pending():
            await asyncio.sleep(0.02)
    events = {event.event_id: event for event in await meter.events()}
    begun = {answer.request_id for answer in answers if answer.request_id}
    assert begun <= set(events), f"no event for {begun - set(events)}"
    for answer in answers:
        if answer.tokens is None:
            continue
        event = events[answer.request_id]
        counted = (event.prompt_tokens, event.cached_prompt_tokens, event.completion_tokens)
        assert (event.outcome, counted) == ("ok", answer.tokens), event.event_id
    for event in events.values():
        assert event.outcome in ("ok", "cancelled", "lost")
        if event.outcome == "lost":
            assert (event.prompt_tokens, event.completion_tokens, event.amount_pico) == (0, 0, 0)
    spent = sum(event.amount_pico for event in events.values())
    assert await meter.budget() == (spent, 0)
    assert await meter.balances() == (
        {"tenant:acme:receivable": spent, "revenue:tokens": -spent} if spent else {}
    )
