"""Amounts are exact until they are rounded, once, to the nearest cent."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.billing.money import PICO_PER_CENT, decimal_text, round_to_cents, shifted, to_dollars

CENT = Decimal("0.01")


@given(st.integers(-(10**25), 10**25))
def test_rounding_is_half_even_as_decimal_has_it(amount_pico: int) -> None:
    expected = to_dollars(amount_pico).quantize(CENT, ROUND_HALF_EVEN)
    assert to_dollars(round_to_cents(amount_pico)) == expected


@pytest.mark.parametrize(
    ("halves", "cents"), [(1, 0), (3, 2), (5, 2), (-1, 0), (-3, -2), (-5, -2), (2, 1)]
)
def test_a_tie_goes_to_the_even_cent(halves: int, cents: int) -> None:
    assert round_to_cents(halves * PICO_PER_CENT // 2) == cents * PICO_PER_CENT


@given(st.integers(-(10**30), 10**30), st.integers(0, 15))
def test_a_shift_loses_nothing_and_its_text_has_no_exponent(value: int, num_digits: int) -> None:
    text = decimal_text(shifted(value, num_digits))
    assert set(text) <= set("-.0123456789")
    assert not ("." in text and text.endswith("0"))
    whole, _, part = text.partition(".")
    assert int(whole + part.ljust(num_digits, "0")) == value
    assert text != "-0"
