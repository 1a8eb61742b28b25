"""What every limiter does, in one process and in Redis alike."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.limits.conftest import Clock

from weft.limits.limiter import (
    LEASE_MS,
    STEP_MS,
    WINDOW_MS,
    Grant,
    Level,
    Limiter,
    Rates,
    Refusal,
    Rule,
)
from weft.limits.subjects import Subject

# after this long nothing of now counts any more
GONE_MS = WINDOW_MS + STEP_MS


def rule(
    kind: str = "tenant", name: str = "t", *, requests: int | None = None,
    tokens: int | None = None, running: int | None = None, model: str = "",
) -> Rule:  # fmt: skip
    subject = Subject(kind, name)  # type: ignore[arg-type]
    return Rule(subject, Rates(requests, tokens, running), model)


async def grant(limiter: Limiter, rules: list[Rule], **jobs: int) -> Grant:
    answer = await limiter.reserve(rules, jobs)
    assert isinstance(answer, Grant), answer
    return answer


async def refusal(limiter: Limiter, rules: list[Rule], **jobs: int) -> Refusal:
    answer = await limiter.reserve(rules, jobs)
    assert isinstance(answer, Refusal), answer
    return answer


async def test_as_many_requests_as_the_limit_pass_in_a_minute(
    limiter: Limiter, clock: Clock
) -> None:
    rules = [rule(requests=3)]
    for job in ("a", "b", "c"):
        await grant(limiter, rules, **{job: 1})
        clock.now_ms += 1000
    refused = await refusal(limiter, rules, d=1)
    assert refused.dimension == "requests"
    assert refused.retry_after_ms == GONE_MS - 3000
    clock.now_ms += refused.retry_after_ms - 1
    assert (await refusal(limiter, rules, d=1)).retry_after_ms == 1
    clock.now_ms += 1
    await grant(limiter, rules, d=1)
    await refusal(limiter, rules, e=1)


async def test_requests_at_once_get_exactly_what_there_is(limiter: Limiter) -> None:
    rules = [rule("key", "k", requests=50, running=10), rule(requests=10)]
    answers = await asyncio.gather(*(limiter.reserve(rules, {f"r{i}": 1}) for i in range(200)))
    assert Counter(type(answer) for answer in answers) == {Grant: 10, Refusal: 190}


async def test_tokens_that_were_not_taken_come_back(limiter: Limiter) -> None:
    rules = [rule(tokens=100)]
    (held,) = (await grant(limiter, rules, a=90)).reservations
    refused = await refusal(limiter, rules, b=20)
    assert (refused.dimension, refused.retry_after_ms) == ("tokens", GONE_MS)
    for _ in range(2):  # once more changes nothing
        await limiter.settle(held, 30)
    assert (await grant(limiter, rules, b=70)).states[0].tokens == Level(100, 0, GONE_MS)


async def test_what_was_used_is_not_forgotten_with_a_refund_of_an_earlier_minute(
    limiter: Limiter, clock: Clock
) -> None:
    rules = [rule(tokens=100)]
    (old,) = (await grant(limiter, rules, a=90)).reservations
    clock.now_ms += GONE_MS
    await grant(limiter, rules, b=100)
    await limiter.settle(old, 0)
    await refusal(limiter, rules, c=1)


async def test_a_cancelled_request_never_was(limiter: Limiter) -> None:
    rules = [rule(requests=1, tokens=10, running=1)]
    for job in ("a", "b"):
        (held,) = (await grant(limiter, rules, **{job: 10})).reservations
        await limiter.cancel(held)
        await limiter.cancel(held)
    (state,) = await limiter.peek(rules)
    assert (state.requests, state.tokens) == (Level(1, 1, 0), Level(10, 10, 0))


async def test_a_refused_request_takes_nothing_anywhere(limiter: Limiter) -> None:
    wide, narrow = rule("key", "k", requests=10, tokens=100, running=10), rule(running=1)
    (held,) = (await grant(limiter, [wide, narrow], a=10)).reservations
    for i in range(20):
        refused = await refusal(limiter, [wide, narrow], **{f"b{i}": 10})
        assert (refused.rule, refused.dimension) == (narrow, "running")
    (state,) = await limiter.peek([wide])
    assert state.requests is not None
    assert state.tokens is not None
    assert (state.requests.remaining, state.tokens.remaining) == (9, 90)
    await limiter.settle(held, 10)
    await grant(limiter, [wide, narrow], c=10)


async def test_several_prompts_are_reserved_together_and_end_one_by_one(limiter: Limiter) -> None:
    rules = [rule(requests=5, tokens=100, running=3)]
    granted = await grant(limiter, rules, a=10, b=20, c=30)
    assert [held.num_tokens for held in granted.reservations] == [10, 20, 30]
    assert (await refusal(limiter, rules, d=1)).dimension == "running"
    await limiter.settle(granted.reservations[1], 20)
    await grant(limiter, rules, d=40)
    assert (await refusal(limiter, rules, e=1)).dimension == "tokens"


async def test_the_longest_wait_is_told_and_what_never_fits_first(
    limiter: Limiter, clock: Clock
) -> None:
    first, second = rule("key", "k", requests=1), rule(tokens=10)
    await grant(limiter, [first], a=1)
    clock.now_ms += 5000
    await grant(limiter, [second], b=8)
    refused = await refusal(limiter, [first, second], c=5)
    assert (refused.rule, refused.retry_after_ms) == (second, GONE_MS)
    refused = await refusal(limiter, [first, second], c=11)
    assert (refused.rule, refused.retry_after_ms) == (second, None)
    never = await refusal(limiter, [rule("base", "b", running=1)], d=1, e=1)
    assert (never.dimension, never.retry_after_ms) == ("running", None)


async def test_the_places_of_a_dead_holder_become_free(limiter: Limiter, clock: Clock) -> None:
    rules = [rule(running=1)]
    (dead,) = (await grant(limiter, rules, a=1)).reservations
    clock.now_ms += LEASE_MS - 1
    await refusal(limiter, rules, b=1)
    clock.now_ms += 1
    (alive,) = (await grant(limiter, rules, b=1)).reservations
    for _ in range(5):
        clock.now_ms += LEASE_MS // 3
        await limiter.renew([alive])
    await refusal(limiter, rules, c=1)
    await limiter.settle(dead, 1)  # it was not dead after all, and takes nobody else's place
    await refusal(limiter, rules, c=1)
    await limiter.settle(alive, 1)
    await grant(limiter, rules, c=1)


async def test_a_changed_limit_holds_for_what_is_counted_already(limiter: Limiter) -> None:
    await grant(limiter, [rule(requests=10)], a=1, b=1, c=1)
    refused = await refusal(limiter, [rule(requests=2)], d=1)
    assert refused.states[0].requests == Level(2, 0, GONE_MS)
    await grant(limiter, [rule(requests=4)], d=1)


async def test_subjects_and_models_are_counted_apart(limiter: Limiter) -> None:
    kinds = ("tenant", "project", "key", "adapter", "base")
    rules = [rule(kind, requests=1) for kind in kinds]
    rules += [rule("project", requests=1, model=model) for model in ("m", "n")]
    for i, each in enumerate(rules):
        await grant(limiter, [each], **{f"r{i}": 1})
        await refusal(limiter, [each], again=1)


async def test_a_clock_that_is_set_back_lets_nothing_through(
    limiter: Limiter, clock: Clock
) -> None:
    rules = [rule(requests=1, tokens=5)]
    (held,) = (await grant(limiter, rules, a=5)).reservations
    clock.now_ms -= 5 * WINDOW_MS
    await refusal(limiter, rules, b=1)
    await limiter.cancel(held)
    (held,) = (await grant(limiter, rules, b=5)).reservations
    clock.now_ms += 5 * WINDOW_MS
    await refusal(limiter, rules, c=1)
    clock.now_ms += GONE_MS
    await grant(limiter, rules, c=1)


async def test_the_largest_limit_counts_exactly(limiter: Limiter) -> None:
    largest = 2**53
    granted = await grant(limiter, [rule(tokens=largest)], a=largest - 1)
    assert granted.states[0].tokens == Level(largest, 1, GONE_MS)
    await grant(limiter, [rule(tokens=largest)], b=1)
    await refusal(limiter, [rule(tokens=largest)], c=1)
