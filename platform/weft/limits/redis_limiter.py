"""The limiter that several workers share: counts in Redis, by one script and by Redis' own clock.

Every key has the same hash tag: all that one request counts for is on one node wherever keys are
spread over several, since a script is atomic only there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from weft.limits.limiter import (
    LEASE_MS,
    Dimension,
    Grant,
    Level,
    LimiterUnavailableError,
    Rates,
    Refusal,
    Reservation,
    Rule,
    RuleState,
)

_SCRIPT = Path(__file__).with_name("limiter.lua")
# longer than a busy event loop is late, shorter than anybody waits for a refusal
TIMEOUT_S = 5.0
# a script takes a fraction of a millisecond: more connections would only take time to be made
_MAX_CONNECTIONS = 16
# an allowed and a refused reservation's fields before the levels
_GRANT_FIELDS, _REFUSAL_FIELDS = 2, 5
_LEVEL_FIELDS = 4
_RENEWED_AT_ONCE = 256


def create_client(url: str) -> Redis:
    """A client of a `redis://` or `rediss://` URL that gives up in seconds, not in minutes.

    A lost connection is made again once; an answer that does not come in time is not asked for
    again: the request that waits for it has waited long enough.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    return Redis.from_pool(pool)


class RedisLimiter:
    """A `Limiter` whose counts are below `prefix` in Redis. `clock_ms` stands in for Redis' clock
    in tests. Every method raises LimiterUnavailableError where Redis cannot be reached."""

    def __init__(
        self, client: Redis, prefix: str = "weft", clock_ms: Callable[[], int] | None = None
    ) -> None:
        self._client = client
        self._script = client.register_script(_SCRIPT.read_text())
        self._prefix = f"{prefix}:{{limits}}"
        self._clock_ms = clock_ms
        self._renewing: frozenset[str] = frozenset()
        self._ended: list[Reservation] = []

    async def reserve(self, rules: Sequence[Rule], jobs: Mapping[str, int]) -> Grant | Refusal:
        answer = await self._run("reserve", rules, [(job, 1, num) for job, num in jobs.items()])
        if answer[0] == 1:
            held = (Reservation(job, num, tuple(rules), answer[1]) for job, num in jobs.items())
            return Grant(tuple(held), _states(rules, answer[_GRANT_FIELDS:]))
        _, _, index, dimension, retry_ms = answer[:_REFUSAL_FIELDS]
        return Refusal(
            rules[index - 1],
            cast(Dimension, dimension.decode()),
            retry_ms,
            _states(rules, answer[_REFUSAL_FIELDS:]),
        )

    async def settle(self, reservation: Reservation, num_tokens: int) -> None:
        await self._give_back(reservation, 0, max(reservation.num_tokens - num_tokens, 0))

    async def cancel(self, reservation: Reservation) -> None:
        await self._give_back(reservation, 1, reservation.num_tokens)

    async def renew(self, reservations: Collection[Reservation]) -> None:
        ordered = list(reservations)
        for i in range(0, len(ordered), _RENEWED_AT_ONCE):
            await self._renew(ordered[i : i + _RENEWED_AT_ONCE])

    async def peek(self, rules: Sequence[Rule]) -> tuple[RuleState, ...]:
        answer = await self._run("peek", rules, [])
        return _states(rules, answer[_GRANT_FIELDS:])

    async def close(self) -> None:
        await self._client.aclose()

    async def _give_back(self, held: Reservation, num_requests: int, num_tokens: int) -> None:
        if held.id in self._renewing:
            self._ended.append(held)
        await self._run("settle", held.rules, [(held.id, num_requests, num_tokens)])

    async def _renew(self, reservations: Sequence[Reservation]) -> None:
        """What ends while it is renewed may be renewed after its end: then it ends once more, with
        nothing to give back but its place."""
        self._renewing = frozenset(held.id for held in reservations)
        try:
            with _translated():
                pipeline = self._client.pipeline(transaction=False)
                for held in reservations:
                    keys, args = self._call("renew", held.rules, [(held.id, 0, 0)])
                    await self._script(keys=keys, args=args, client=pipeline)
                await pipeline.execute()
        finally:
            self._renewing = frozenset()
            ended, self._ended = self._ended, []
            for held in ended:
                await self._run("settle", held.rules, [(held.id, 0, 0)])

    async def _run(
        self, operation: str, rules: Sequence[Rule], jobs: Sequence[tuple[str, int, int]]
    ) -> list[Any]:
        keys, args = self._call(operation, rules, jobs)
        with _translated():
            answer: list[Any] = await self._script(keys=keys, args=args)
        return answer

    def _call(
        self, operation: str, rules: Sequence[Rule], jobs: Sequence[tuple[str, int, int]]
    ) -> tuple[list[str], list[str | int]]:
        """KEYS and ARGV of the script."""
        keys = [key for rule in rules for key in self._rule_keys(rule)]
        keys += [f"{self._prefix}:job:{job}" for job, _, _ in jobs]
        now = "" if self._clock_ms is None else self._clock_ms()
        args: list[str | int] = [operation, now, LEASE_MS, len(rules), len(jobs)]
        for rule in rules:
            args += _limits(rule.rates)
        for job in jobs:
            args += job
        return keys, args

    def _rule_keys(self, rule: Rule) -> Iterator[str]:
        for part in ("requests", "requests:steps", "tokens", "tokens:steps", "running"):
            yield f"{self._prefix}:{part}:{rule.key}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise LimiterUnavailableError(f"Redis could not be asked: {error}") from error


def _limits(rates: Rates) -> list[str | int]:
    limits = (rates.requests_per_minute, rates.tokens_per_minute, rates.max_running)
    return ["" if limit is None else limit for limit in limits]


def _states(rules: Sequence[Rule], levels: Sequence[int]) -> tuple[RuleState, ...]:
    return tuple(
        RuleState(
            _level(rule.rates.requests_per_minute, levels[i : i + 2]),
            _level(rule.rates.tokens_per_minute, levels[i + 2 : i + 4]),
        )
        for rule, i in zip(rules, range(0, len(levels), _LEVEL_FIELDS), strict=True)
    )


def _level(limit: int | None, level: Sequence[int]) -> Level | None:
    taken, reset_ms = level
    return None if limit is None else Level(limit, max(limit - taken, 0), reset_ms)
