"""Charges: what one hour's tokens of one kind cost. Pure; where they are kept is `models`' part.

An hour of usage becomes a charge for each meter. A charge that was invoiced never changes: where an
hour turns out otherwise, what was invoiced is taken back by a charge of the opposite sign and the
hour charged anew, both as corrections in a later period.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from weft.billing.periods import HOUR_S, Month

Meter = Literal["input", "cached_input", "output"]
METERS: tuple[Meter, ...] = ("input", "cached_input", "output")


class UsageMismatchError(Exception):
    """Amounts of events are not what their tokens cost at their price: they were tampered with."""


@dataclass(frozen=True, slots=True, order=True)
class UsageKey:
    """What the requests of a `UsageHour` have in common. `adapter_id` "": the base itself."""

    hour_at: int
    project_id: str
    api_key_id: str
    base_model: str
    adapter_id: str
    adapter_version: int
    adapter_digest: str
    model: str
    price_id: str


@dataclass(frozen=True, slots=True)
class UsageHour:
    """The events of one hour that are alike, added up; `prompt_tokens` include the cached ones."""

    key: UsageKey
    num_requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    amount_pico: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Picodollars per token of each meter: by the price that held, and by the list."""

    input: int
    cached_input: int
    output: int
    list_input: int
    list_cached_input: int
    list_output: int

    def of(self, meter: Meter) -> tuple[int, int]:
        """(what was agreed, what the list says)."""
        rate: int = getattr(self, meter)
        list_rate: int = getattr(self, f"list_{meter}")
        return rate, list_rate


FREE = Rates(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Charge:
    """Tokens of one meter in one hour, and their rates in picodollars per token.

    `num_requests` and `num_tokens` are negative where a charge is taken back.
    """

    key: UsageKey
    meter: Meter
    num_requests: int
    num_tokens: int
    rate: int
    list_rate: int
    is_correction: bool = False

    @property
    def amount_pico(self) -> int:
        return self.num_tokens * self.rate

    @property
    def list_amount_pico(self) -> int:
        return self.num_tokens * self.list_rate

    @property
    def month(self) -> Month:
        """When it was used, which for a correction is not when it is billed."""
        return Month.at(self.key.hour_at)

    @property
    def end_at(self) -> int:
        return self.key.hour_at + HOUR_S


def charges_of(hours: Iterable[UsageHour], rates: Mapping[str, Rates]) -> Iterator[Charge]:
    """What the hours cost, at the rates of their price ids; a meter without tokens costs nothing.

    UsageMismatchError where that is not what the events themselves say.
    """
    for hour in hours:
        found = rates[hour.key.price_id]
        num_tokens: dict[Meter, int] = {
            "input": hour.prompt_tokens - hour.cached_prompt_tokens,
            "cached_input": hour.cached_prompt_tokens,
            "output": hour.completion_tokens,
        }
        charges = [
            Charge(hour.key, meter, hour.num_requests, num_tokens[meter], *found.of(meter))
            for meter in METERS
            if num_tokens[meter]
        ]
        amount_pico = sum(charge.amount_pico for charge in charges)
        if amount_pico != hour.amount_pico:
            raise UsageMismatchError(
                f"the events of {hour.key} say {hour.amount_pico} picodollars, their tokens at "
                f"price {hour.key.price_id} come to {amount_pico}"
            )
        yield from charges


def corrections_of(billed: Iterable[Charge], used: Iterable[Charge]) -> list[Charge]:
    """What turns `billed`, all that was ever invoiced of some hours, into `used`: first everything
    of an hour's meter that is not as it should be taken back, then the charge as it should be."""
    before = _by_meter(billed)
    after = _by_meter(used)
    found = []
    for meter in sorted(before.keys() | after.keys(), key=lambda m: (m[0], METERS.index(m[1]))):
        old, new = before.get(meter), after.get(meter)
        if _counts(old) == _counts(new):
            continue
        if old is not None and any(_counts(old)):
            found.append(_corrected(old, -1))
        if new is not None and any(_counts(new)):
            found.append(_corrected(new, 1))
    return found


def _by_meter(charges: Iterable[Charge]) -> dict[tuple[UsageKey, Meter], Charge]:
    """One charge for each hour and meter: what all of them come to."""
    found: dict[tuple[UsageKey, Meter], Charge] = {}
    for charge in charges:
        before = found.get((charge.key, charge.meter))
        num_requests, num_tokens = _counts(before)
        found[charge.key, charge.meter] = Charge(
            charge.key,
            charge.meter,
            charge.num_requests + num_requests,
            charge.num_tokens + num_tokens,
            charge.rate,
            charge.list_rate,
        )
    return found


def _counts(charge: Charge | None) -> tuple[int, int]:
    return (0, 0) if charge is None else (charge.num_requests, charge.num_tokens)


def _corrected(charge: Charge, sign: int) -> Charge:
    return Charge(
        charge.key,
        charge.meter,
        sign * charge.num_requests,
        sign * charge.num_tokens,
        charge.rate,
        charge.list_rate,
        is_correction=True,
    )
