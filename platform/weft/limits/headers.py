"""OpenAI's rate-limit headers. Knows limits, not who sends them.

What a base that all tenants share has left is in none of them: it would tell one tenant how busy
the others are.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.limits.limiter import Level, Rule, RuleState


def rate_limit_headers(rules: Sequence[Rule], states: Sequence[RuleState]) -> dict[str, str]:
    """Limit, remaining and reset of the rule with the least left, for requests and for tokens;
    nothing where there is no limit."""
    own = [state for rule, state in zip(rules, states, strict=True) if rule.subject.kind != "base"]
    headers: dict[str, str] = {}
    for name, levels in (
        ("requests", [state.requests for state in own]),
        ("tokens", [state.tokens for state in own]),
    ):
        tightest = min((level for level in levels if level is not None), key=_left, default=None)
        if tightest is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(tightest.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(tightest.remaining)
            headers[f"x-ratelimit-reset-{name}"] = format_duration(tightest.reset_ms)
    return headers


def _left(level: Level) -> int:
    return level.remaining


def format_duration(duration_ms: int) -> str:
    """As OpenAI writes them: `0s`, `12ms`, `1.5s`, `6m0s`."""
    if 0 < duration_ms < 1000:
        return f"{duration_ms}ms"
    minutes, rest_ms = divmod(duration_ms, 60_000)
    seconds = f"{rest_ms / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds
