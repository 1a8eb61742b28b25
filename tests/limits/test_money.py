"""Dollars and picodollars are the same amount both ways."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.limits.money import to_pico, to_usd


@given(st.integers(-(2**63), 2**63))
def test_an_amount_comes_back_from_its_text(amount_pico: int) -> None:
    text = to_usd(amount_pico)
    assert to_pico(Decimal(text)) == amount_pico
    assert "E" not in text
    assert not text.endswith(".")


def test_amounts_are_written_as_people_do() -> None:
    written = [to_usd(pico) for pico in (0, 1, 12_500_000_000_000, 10**15, -(10**11))]
    assert written == ["0", "0.000000000001", "12.5", "1000", "-0.1"]


@pytest.mark.parametrize("text", ["0.0000000000001", "NaN", "Infinity"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an amount"):
        to_pico(Decimal(text))
