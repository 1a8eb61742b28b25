"""An invoice's lines from a period's charges. Pure.

A line keeps two amounts: the exact one, and the one in whole cents that it is rounded to once. The
lines' rounded amounts add up to what is payable. So do the exact ones, because what rounding made
of them is a line as well: the adjustment, whose rounded amount is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from weft.billing.charges import METERS, Charge, Meter
from weft.billing.money import round_to_cents
from weft.billing.periods import Month
from weft.usage.ledger import UnbalancedError

LineKind = Literal["usage", "correction", "adjustment"]


@dataclass(frozen=True, slots=True, order=True)
class LineGrain:
    """What the charges of a line have in common. `month` is when they were used."""

    month: Month
    project_id: str
    base_model: str
    price_id: str
    meter_index: int

    @classmethod
    def of(cls, charge: Charge) -> LineGrain:
        key = charge.key
        index = METERS.index(charge.meter)
        return cls(charge.month, key.project_id, key.base_model, key.price_id, index)

    @property
    def meter(self) -> Meter:
        return METERS[self.meter_index]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an invoice; the adjustment has no grain and no charges."""

    number: int
    kind: LineKind
    grain: LineGrain | None
    num_requests: int
    num_tokens: int
    exact_pico: int
    billed_pico: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """Lines in order, and the number of the line that each charge is on."""

    lines: tuple[Line, ...]
    line_numbers: tuple[int, ...]

    @property
    def payable_pico(self) -> int:
        """In whole cents."""
        return sum(line.billed_pico for line in self.lines)

    @property
    def adjustment_pico(self) -> int:
        return sum(line.exact_pico for line in self.lines if line.kind == "adjustment")


def create_invoice(charges: Sequence[Charge]) -> Invoice:
    """The invoice over `charges`: usage first, then corrections, then the adjustment.

    UnbalancedError where what is to be paid is not the sum of its lines; checked under `-O`, too.
    """
    groups: dict[tuple[bool, LineGrain], list[Charge]] = {}
    for charge in charges:
        groups.setdefault((charge.is_correction, LineGrain.of(charge)), []).append(charge)
    order = sorted(groups)
    lines = [
        _line(number, is_correction, grain, groups[is_correction, grain])
        for number, (is_correction, grain) in enumerate(order, 1)
    ]
    exact_pico = sum(line.exact_pico for line in lines)
    difference_pico = sum(line.billed_pico for line in lines) - exact_pico
    if difference_pico:
        lines.append(Line(len(lines) + 1, "adjustment", None, 0, 0, difference_pico, 0))
    numbers = {group: number for number, group in enumerate(order, 1)}
    on_lines = (numbers[charge.is_correction, LineGrain.of(charge)] for charge in charges)
    invoice = Invoice(tuple(lines), tuple(on_lines))
    total_pico = sum(line.exact_pico for line in lines)
    if total_pico != invoice.payable_pico:
        raise UnbalancedError(f"the lines add up to {total_pico}, not {invoice.payable_pico}")
    return invoice


def _line(number: int, is_correction: bool, grain: LineGrain, charges: Iterable[Charge]) -> Line:
    num_requests = num_tokens = exact_pico = 0
    for charge in charges:
        num_requests += charge.num_requests
        num_tokens += charge.num_tokens
        exact_pico += charge.amount_pico
    return Line(
        number,
        "correction" if is_correction else "usage",
        grain,
        num_requests,
        num_tokens,
        exact_pico,
        round_to_cents(exact_pico),
    )
