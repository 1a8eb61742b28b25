"""Money as whole picodollars, and its text. Knows no price and no invoice."""

from __future__ import annotations

from decimal import Decimal

CURRENCY = "USD"
PICO_PER_DOLLAR = 10**12
PICO_PER_CENT = 10**10
# a price in micro-dollars per million tokens is picodollars per token: both stand for a factor of
# a million between what a token costs and what prices are told for
TOKENS_PER_PRICE = 10**6


def round_to_cents(amount_pico: int) -> int:
    """The nearest multiple of a cent, in picodollars; a tie goes to the even cent."""
    cents, rest = divmod(amount_pico, PICO_PER_CENT)
    is_up = 2 * rest > PICO_PER_CENT or (2 * rest == PICO_PER_CENT and cents % 2 == 1)
    return (cents + is_up) * PICO_PER_CENT


def to_dollars(amount_pico: int) -> Decimal:
    """Exact, with no more digits than it needs."""
    return shifted(amount_pico, 12)


def shifted(value: int, num_digits: int) -> Decimal:
    """`value` / 10**`num_digits`, exact: unlike a division it does not depend on a precision."""
    sign, rest = ("-", -value) if value < 0 else ("", value)
    whole, part = divmod(rest, 10**num_digits)
    text = f"{whole}.{part:0{num_digits}d}".rstrip("0").rstrip(".")
    return Decimal(f"{sign}{text}" if rest else "0")


def decimal_text(value: Decimal) -> str:
    """Digits with a point where one is needed, never in scientific notation."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
