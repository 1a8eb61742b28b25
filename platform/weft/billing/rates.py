"""The rates of every price that was ever published: its own, and those of the list beside it."""

from __future__ import annotations

from collections.abc import Sequence

from weft.billing.charges import FREE, Rates
from weft.usage.money_models import Price


def rates_by_price(prices: Sequence[tuple[Price, int]]) -> dict[str, Rates]:
    """By price id; "" is of usage without a price.

    `prices` are in the order in which they began to hold. The list price beside one is the price
    for everybody of the same base that held when it began, or it itself where there was none.
    """
    found = {"": FREE}
    for price, effective_from in prices:
        listed = [
            other
            for other, began_at in prices
            if other.base_model == price.base_model
            and other.tenant_id is None
            and other.adapter_id is None
            and began_at <= effective_from
        ]
        beside = listed[-1] if listed else price
        found[price.id] = Rates(
            price.input_rate,
            price.cached_input_rate,
            price.output_rate,
            beside.input_rate,
            beside.cached_input_rate,
            beside.output_rate,
        )
    return found
