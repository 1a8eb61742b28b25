"""Hours become charges; what was charged wrongly is taken back and charged anew."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.billing.month import RATES, create_hour

from weft.billing.charges import (
    Charge,
    UsageHour,
    UsageMismatchError,
    charges_of,
    corrections_of,
)

tokens = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)).map(
    lambda t: (t[0] + t[1], t[1], t[2])
)
some_hours = st.dictionaries(st.integers(0, 3), tokens, max_size=4).map(
    lambda found: [create_hour(hour, each) for hour, each in found.items()]
)


def test_an_hour_is_a_charge_for_each_meter_at_its_own_rate() -> None:
    charges = list(charges_of([create_hour(0, (1_120, 1_024, 58))], RATES))
    assert [(c.meter, c.num_tokens, c.amount_pico, c.list_amount_pico) for c in charges] == [
        ("input", 96, 192_000_000, 240_000_000),
        ("cached_input", 1_024, 204_800_000, 256_000_000),
        ("output", 58, 464_000_000, 580_000_000),
    ]


def test_a_meter_without_tokens_is_no_charge() -> None:
    assert [c.meter for c in charges_of([create_hour(0, (5, 5, 0))], RATES)] == ["cached_input"]


def test_events_that_say_another_amount_than_their_tokens_are_refused() -> None:
    hour = dataclasses.replace(create_hour(0, (10, 0, 1)), amount_pico=1)
    with pytest.raises(UsageMismatchError, match="price_acme"):
        list(charges_of([hour], RATES))


@given(some_hours, some_hours)
def test_corrections_turn_what_was_billed_into_what_was_used(
    billed_hours: list[UsageHour], used_hours: list[UsageHour]
) -> None:
    billed = list(charges_of(billed_hours, RATES))
    used = list(charges_of(used_hours, RATES))
    corrections = corrections_of(billed, used)
    assert all(charge.is_correction for charge in corrections)
    assert total([*billed, *corrections]) == total(used)
    assert corrections_of([*billed, *corrections], used) == []


def total(charges: list[Charge]) -> dict[object, tuple[int, int]]:
    found: dict[object, tuple[int, int]] = {}
    for charge in charges:
        before = found.get((charge.key, charge.meter), (0, 0))
        now = (before[0] + charge.num_requests, before[1] + charge.num_tokens)
        found[charge.key, charge.meter] = now
    return {key: counts for key, counts in found.items() if any(counts)}


def test_a_late_request_takes_its_hour_back_and_charges_it_anew() -> None:
    (before,) = charges_of([create_hour(0, (10, 0, 0))], RATES)
    (after,) = charges_of([create_hour(0, (30, 0, 0), requests=4)], RATES)
    taken_back, anew = corrections_of([before], [after])
    assert (taken_back.num_tokens, taken_back.num_requests) == (-10, -3)
    assert (anew.num_tokens, anew.num_requests, anew.rate) == (30, 4, before.rate)
