"""Dollars as people write them, and picodollars as they are counted: exact both ways."""

from __future__ import annotations

from decimal import Decimal, localcontext

PICO_DIGITS = 12


def to_pico(amount_usd: Decimal) -> int:
    """ValueError for more than twelve places behind the point, or no number."""
    with localcontext(prec=64):
        if not amount_usd.is_finite():
            raise ValueError("an amount is a number")
        amount = amount_usd.scaleb(PICO_DIGITS)
        if amount != amount.to_integral_value():
            raise ValueError(f"an amount has at most {PICO_DIGITS} places behind the point")
        return int(amount)


def to_usd(amount_pico: int) -> str:
    """Without an exponent and without zeros at the end."""
    with localcontext(prec=64):
        text = f"{Decimal(amount_pico).scaleb(-PICO_DIGITS):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
