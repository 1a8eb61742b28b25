"""Usage of a tenant's month, and prices."""

from __future__ import annotations

from weft.billing.charges import Rates, UsageHour, UsageKey
from weft.billing.periods import HOUR_S, Month

NOVEMBER = Month(2026, 11)
# dollars per million tokens: 2.50, 0.25 and 10; this tenant pays a fifth less
RATES = {
    "price_list": Rates(2_500_000, 250_000, 10_000_000, 2_500_000, 250_000, 10_000_000),
    "price_acme": Rates(2_000_000, 200_000, 8_000_000, 2_500_000, 250_000, 10_000_000),
}


def create_hour(
    hour: int, tokens: tuple[int, int, int], *, adapter: str = "adp_1", price: str = "price_acme",
    project: str = "proj_1", requests: int = 3,
) -> UsageHour:  # fmt: skip
    """`hour` counts from the month's start; `tokens` are prompt, of them cached, completion."""
    prompt, cached, completion = tokens
    rates = RATES[price]
    return UsageHour(
        UsageKey(
            NOVEMBER.start_at + hour * HOUR_S,
            project,
            "key1",
            "tiny",
            adapter,
            3 if adapter else 0,
            "sha256:abc" if adapter else "",
            "bot@v3" if adapter else "tiny",
            price,
        ),
        requests,
        prompt,
        cached,
        completion,
        (prompt - cached) * rates.input + cached * rates.cached_input + completion * rates.output,
    )
