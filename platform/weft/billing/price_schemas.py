"""Prices on the wire: dollars per million tokens, as text, exact to a micro-dollar."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from weft.billing.money import decimal_text, shifted
from weft.db.lists import ListItem
from weft.usage.money_models import Price, PriceBook
from weft.usage.prices import Rates

MAX_PRICES = 1000
_RATE = re.compile(r"(\d{1,7})(?:\.(\d{1,6}))?")


def parse_rate(text: str) -> int:
    """Micro-dollars, from dollars with up to six digits after the point; else ValueError."""
    found = _RATE.fullmatch(text)
    if found is None or not text.isascii():
        raise ValueError(
            f"a price is dollars per million tokens, such as 2.5 or 0.000001, not {text[:40]!r}"
        )
    return int(found[1]) * 10**6 + int((found[2] or "").ljust(6, "0"))


def _checked(text: str) -> str:
    parse_rate(text)
    return text


Rate = Annotated[str, Field(max_length=16), AfterValidator(_checked)]


class PriceBody(BaseModel):
    """Of a base for everybody; with `tenant` (id or name) for it alone; with `adapter` (its name)
    for that one of the tenant's adapters."""

    model_config = ConfigDict(extra="forbid")
    base_model: str = Field(min_length=1, max_length=255)
    input: Rate
    output: Rate
    cached_input: Rate | None = Field(default=None, description="Default: as input.")
    tenant: str | None = Field(default=None, min_length=1, max_length=128)
    adapter: str | None = Field(default=None, min_length=1, max_length=64)

    def to_rates(self) -> Rates:
        cached = self.input if self.cached_input is None else self.cached_input
        return Rates(parse_rate(self.input), parse_rate(cached), parse_rate(self.output))


class PriceBookCreate(BaseModel):
    """Prices that hold from `effective_from` (Unix seconds; default: now) on."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][^\x00-\x1f\x7f]{0,126}$")
    effective_from: int | None = Field(default=None, ge=0, le=2**40)
    prices: list[PriceBody] = Field(min_length=1, max_length=MAX_PRICES)


class PriceObject(BaseModel):
    object: Literal["price"] = "price"
    id: str
    base_model: str
    tenant_id: str | None
    adapter_id: str | None
    input: str
    cached_input: str
    output: str
    unit: Literal["usd per million tokens"] = "usd per million tokens"


class PriceBookObject(ListItem):
    object: Literal["price_book"] = "price_book"
    name: str
    effective_from: int
    created_at: int
    prices: list[PriceObject]


def rate_text(rate: int) -> str:
    return decimal_text(shifted(rate, 6))


def price_book_object(book: PriceBook, prices: list[Price]) -> PriceBookObject:
    return PriceBookObject(
        id=book.id,
        name=book.name,
        effective_from=book.effective_from,
        created_at=book.created_at,
        prices=[
            PriceObject(
                id=price.id,
                base_model=price.base_model,
                tenant_id=price.tenant_id,
                adapter_id=price.adapter_id,
                input=rate_text(price.input_rate),
                cached_input=rate_text(price.cached_input_rate),
                output=rate_text(price.output_rate),
            )
            for price in prices
        ],
    )
