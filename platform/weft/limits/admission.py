"""Lets requests in under their rules, keeps their places while they run, and gives them back.

The failure policy is here: while the limiter cannot be asked, requests are refused with 503, or run
without rates where the operator has said so. Budgets leave no such choice: they are in the database
without which nothing runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from weft.errors import OverloadedError, RateLimitError
from weft.limits.book import LimitBook
from weft.limits.headers import format_duration, rate_limit_headers
from weft.limits.limiter import (
    RENEW_INTERVAL_S,
    Dimension,
    Limiter,
    LimiterUnavailableError,
    Refusal,
    Reservation,
    Rule,
)
from weft.limits.subjects import RequestSubjects, SubjectKind

logger = logging.getLogger("weft.limits")

RETRY_AFTER_S = 2
_WHAT: dict[Dimension, str] = {
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "running": "requests at a time",
}


class LimitExceededError(RateLimitError):
    """A rate, or the number of requests at a time, has no room for a request now, or never has."""

    def __init__(self, rules: Sequence[Rule], refusal: Refusal) -> None:
        whose = f"{refusal.rule.subject.kind} '{refusal.rule.subject.id}'"
        if refusal.rule.model:
            whose += f" to '{refusal.rule.model}'"
        what = f"{_limit(refusal)} {_WHAT[refusal.dimension]} of {whose}"
        retry_ms = refusal.retry_after_ms
        if retry_ms is None:
            super().__init__(f"This request is larger than the {what} will ever allow.")
            self.headers = {"x-should-retry": "false"}
        else:
            super().__init__(
                f"Rate limit reached: the {what} are used up. Please try again in "
                f"{format_duration(retry_ms)}."
            )
            seconds = str(math.ceil(retry_ms / 1000))
            self.headers = {"retry-after": seconds, "retry-after-ms": str(retry_ms)}
        self.headers |= rate_limit_headers(rules, refusal.states)


class LimitsUnavailableError(OverloadedError):
    """The limiter cannot be asked, and nothing runs unasked."""

    def __init__(self) -> None:
        super().__init__(
            "The rate limits cannot be checked at the moment. Please try again.",
            retry_after_s=RETRY_AFTER_S,
            code="limits_unavailable",
        )


class AdmissionMetrics(Protocol):
    """What is counted of admissions."""

    def request_limited(self, subject: SubjectKind, dimension: Dimension) -> None:
        """A request was refused."""
        ...

    def limiter_failed(self) -> None:
        """The limiter could not be asked."""
        ...


class Admission:
    """One worker's way to the limiter. A job is an engine request, known by its id."""

    def __init__(
        self, limiter: Limiter, book: LimitBook, metrics: AdmissionMetrics, *, fails_open: bool
    ) -> None:
        self._limiter, self._book, self._metrics = limiter, book, metrics
        self._fails_open = fails_open
        self._open: dict[str, Reservation] = {}
        self._is_down = False

    async def reserve(
        self, subjects: RequestSubjects, model: str, jobs: Mapping[str, int]
    ) -> dict[str, str]:
        """Places for all jobs (their highest numbers of tokens by id) or for none; the answer's
        headers. LimitExceededError, or LimitsUnavailableError.

        Each job is then settled or cancelled.
        """
        rules = await self._book.rules_for(subjects, model)
        if not rules:
            return {}
        try:
            answer = await self._limiter.reserve(rules, jobs)
        except LimiterUnavailableError as error:
            self._failed(error)
            if self._fails_open:
                return {}
            raise LimitsUnavailableError from error
        self._answered()
        if isinstance(answer, Refusal):
            self._metrics.request_limited(answer.rule.subject.kind, answer.dimension)
            raise LimitExceededError(rules, answer)
        self._open.update((held.id, held) for held in answer.reservations)
        return rate_limit_headers(rules, answer.states)

    async def settle(self, job: str, num_tokens: int) -> None:
        """The job is over and took this many tokens."""
        await self._end(job, num_tokens)

    async def cancel(self, job: str) -> None:
        """The job never ran."""
        await self._end(job, None)

    async def headers(self, subjects: RequestSubjects) -> dict[str, str]:
        """Those of an answer to a request that came to no reservation; none if they cannot be had:
        the answer does not depend on them."""
        rules = await self._book.rules_for(subjects, "")
        try:
            return rate_limit_headers(rules, await self._limiter.peek(rules)) if rules else {}
        except LimiterUnavailableError as error:
            self._failed(error)
            return {}

    async def find_fault(self) -> str:
        """Why requests are refused whatever their limits, as a sentence; empty: they are not."""
        if self._fails_open:
            return ""
        try:
            await self._limiter.peek(())
        except LimiterUnavailableError:
            return "The limiter does not answer."
        return ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Renews the leases of what runs."""
        renewal = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            renewal.cancel()
            with suppress(asyncio.CancelledError):
                await renewal
            await self._limiter.close()

    async def _end(self, job: str, num_tokens: int | None) -> None:
        held = self._open.pop(job, None)
        if held is None:
            return  # it was let in without the limiter
        try:
            if num_tokens is None:
                await self._limiter.cancel(held)
            else:
                await self._limiter.settle(held, num_tokens)
        except LimiterUnavailableError as error:
            # not tried again: the place is free when its lease is over, the tokens in a minute
            self._failed(error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_INTERVAL_S)
            held = [each for each in self._open.values() if each.is_leased]
            try:
                if held:
                    await self._limiter.renew(held)
            except LimiterUnavailableError as error:
                self._failed(error)

    def _failed(self, error: LimiterUnavailableError) -> None:
        self._metrics.limiter_failed()
        if not self._is_down:
            how = "without rate limits" if self._fails_open else "with 503"
            logger.error("%s; until it can, requests are answered %s", error, how)
        self._is_down = True

    def _answered(self) -> None:
        if self._is_down:
            logger.warning("the limiter can be asked again")
        self._is_down = False


def _limit(refusal: Refusal) -> int | None:
    rates = refusal.rule.rates
    return {
        "requests": rates.requests_per_minute,
        "tokens": rates.tokens_per_minute,
        "running": rates.max_running,
    }[refusal.dimension]
