"""Months are UTC's, whatever a year or a daylight saving time does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.billing.periods import Month


@given(st.integers(0, 2**33))
def test_every_second_is_in_one_month(time_s: int) -> None:
    month = Month.at(time_s)
    assert month.start_at <= time_s < month.end_at
    assert Month.at(month.start_at) == month
    assert Month.at(month.end_at) == month.next > month
    assert Month.parse(str(month)) == month


def test_a_month_ends_where_the_next_begins_across_a_year() -> None:
    assert str(Month(2026, 12).next) == "2027-01"
    assert Month(2028, 2).end_at - Month(2028, 2).start_at == 29 * 86_400


@pytest.mark.parametrize(
    "name", ["2026-13", "2026-1", "26-11", "2026-11-01", "", "2026-00", "٢٠٢٦-11", "1969-12"]
)
def test_a_name_that_is_no_month_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="2026-11"):
        Month.parse(name)
