"""What clients are told is what binds them, in OpenAI's words."""

from __future__ import annotations

import pytest

from weft.limits.headers import format_duration, rate_limit_headers
from weft.limits.limiter import Level, Rates, Rule, RuleState
from weft.limits.subjects import Subject


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [(0, "0s"), (12, "12ms"), (999, "999ms"), (1000, "1s"), (1500, "1.5s"), (59_999, "59.999s"),
     (60_000, "1m0s"), (60_100, "1m0.1s"), (360_000, "6m0s")],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(duration_ms: int, text: str) -> None:
    assert format_duration(duration_ms) == text


def test_the_rule_with_the_least_left_is_told_but_not_the_bases() -> None:
    rules = [Rule(Subject(kind, "x"), Rates(1, 1)) for kind in ("tenant", "key", "base")]
    states = [
        RuleState(Level(100, 50, 7), Level(1000, 10, 20)),
        RuleState(Level(60, 59, 9), None),
        RuleState(Level(1, 0, 1), Level(1, 0, 1)),
    ]
    assert rate_limit_headers(rules, states) == {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "50",
        "x-ratelimit-reset-requests": "7ms",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "10",
        "x-ratelimit-reset-tokens": "20ms",
    }
    # never a placeholder
    assert rate_limit_headers(rules[2:], states[2:]) == {}
