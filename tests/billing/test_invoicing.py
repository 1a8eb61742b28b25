"""Lines are rounded once, to cents; what rounding came to is a line of its own."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from tests.billing.month import RATES, create_hour

from weft.billing.charges import Charge, UsageHour, charges_of
from weft.billing.invoicing import create_invoice
from weft.billing.money import PICO_PER_CENT, round_to_cents

many_hours = st.lists(
    st.builds(
        create_hour,
        st.integers(0, 719),
        st.tuples(st.integers(0, 10**7), st.just(0), st.integers(0, 10**7)),
        project=st.sampled_from(["proj_1", "proj_2"]),
        adapter=st.sampled_from(["", "adp_1", "adp_2"]),
        price=st.sampled_from(sorted(RATES)),
    ),
    max_size=12,
)


@given(many_hours)
def test_both_sums_of_an_invoice_are_what_is_payable(hours: list[UsageHour]) -> None:
    charges = list(charges_of(hours, RATES))
    invoice = create_invoice(charges)
    exact = sum(charge.amount_pico for charge in charges)
    assert invoice.payable_pico % PICO_PER_CENT == 0
    assert sum(line.exact_pico for line in invoice.lines) == invoice.payable_pico
    assert invoice.payable_pico == exact + invoice.adjustment_pico
    for line in invoice.lines:
        own = [
            charge
            for charge, number in zip(charges, invoice.line_numbers, strict=True)
            if number == line.number
        ]
        if line.kind == "adjustment":
            assert (own, line.billed_pico) == ([], 0)
        else:
            assert line.exact_pico == sum(charge.amount_pico for charge in own)
            assert line.billed_pico == round_to_cents(line.exact_pico)


def test_adapters_of_a_project_share_lines_and_projects_do_not(charges: list[Charge]) -> None:
    lines = create_invoice(charges).lines
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    seen = [(line.grain.project_id, line.grain.price_id, line.grain.meter) for line in lines[:-1]
            if line.grain]  # fmt: skip
    assert len(set(seen)) == len(seen) == 8
    assert lines[-1].kind == "adjustment"


def test_lines_that_need_no_rounding_have_no_adjustment() -> None:
    (charge,) = charges_of([create_hour(0, (1_000_000, 0, 0))], RATES)
    (line,) = create_invoice([charge]).lines
    assert line.exact_pico == line.billed_pico == 2 * 10**12


def test_corrections_have_lines_of_their_own(charges: list[Charge]) -> None:
    late = dataclasses.replace(charges[0], is_correction=True)
    kinds = [line.kind for line in create_invoice([*charges, late]).lines]
    assert kinds.count("correction") == 1


def test_nothing_used_is_nothing_payable() -> None:
    assert create_invoice([]).lines == ()
