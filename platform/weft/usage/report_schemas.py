"""Reports on the wire: OpenAI's shapes, and what adapters add to them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class CompletionsResult(BaseModel):
    """Tokens of one group. What was not grouped by is null; cached tokens are input as well."""

    object: Literal["organization.usage.completions.result"] = (
        "organization.usage.completions.result"
    )
    input_tokens: int
    output_tokens: int
    input_cached_tokens: int
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    num_model_requests: int
    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None
    adapter_id: str | None = None
    adapter_version: int | None = None
    adapter_digest: str | None = None


class CompletionsBucket(BaseModel):
    """Usage of requests that ended in [start_time, end_time)."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[CompletionsResult]


class CompletionsPage(BaseModel):
    """Buckets in order; `next_page` leads on."""

    object: Literal["page"] = "page"
    data: list[CompletionsBucket]
    has_more: bool
    next_page: str | None


class Amount(BaseModel):
    """Dollars as a number, as OpenAI has it; `value_pico` is exact, in picodollars."""

    value: float
    currency: Literal["usd"] = "usd"
    value_pico: int


class CostsResult(BaseModel):
    """Money of one group; `line_item` is "<base model>, input", "... cached input", "... output",
    and `quantity` its tokens."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: Amount
    line_item: str | None = None
    project_id: str | None = None
    api_key_id: str | None = None
    quantity: float | None = None


class CostsBucket(BaseModel):
    """Costs of requests that ended in [start_time, end_time)."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[CostsResult]


class CostsPage(BaseModel):
    """Buckets in order; `next_page` leads on."""

    object: Literal["page"] = "page"
    data: list[CostsBucket]
    has_more: bool
    next_page: str | None
