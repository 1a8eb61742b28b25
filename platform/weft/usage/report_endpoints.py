"""A tenant's usage and costs over time, for the SDKs' admin clients.

A project's key sees its own project, an administrator the whole tenant.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query

from weft.db.dependencies import ReadSession
from weft.db.ids import now
from weft.tenancy.auth import require_any
from weft.tenancy.principal import Principal, TenantAdmin
from weft.usage.report_repository import (
    Grouping,
    ReportFilter,
    ReportRepository,
    Totals,
    UsageTotal,
)
from weft.usage.report_schemas import (
    Amount,
    CompletionsBucket,
    CompletionsPage,
    CompletionsResult,
    CostsBucket,
    CostsPage,
    CostsResult,
)
from weft.usage.reports import (
    COST_LIMITS,
    USAGE_LIMITS,
    WIDTHS_S,
    BucketWidth,
    Span,
    check_limit,
    create_span,
)

router = APIRouter(prefix="/v1/organization", tags=["usage"])

_MAX_TIME_S, _MAX_CHOICES = 2**40, 100
_PICO_PER_DOLLAR = 10**12
UsageGroup = Literal["project_id", "user_id", "api_key_id", "model", "batch", "adapter"]
CostGroup = Literal["project_id", "line_item", "api_key_id"]
# what is grouped by; nobody but keys makes requests, and none is a batch
_USAGE_KEYS: dict[UsageGroup, tuple[Grouping, ...]] = {
    "project_id": ("project_id",),
    "user_id": (),
    "api_key_id": ("api_key_id",),
    "model": ("model",),
    "batch": (),
    "adapter": ("adapter_id", "adapter_version", "adapter_digest"),
}
_COST_KEYS: dict[CostGroup, tuple[Grouping, ...]] = {
    "project_id": ("project_id",),
    "line_item": ("base_model", "price_id"),
    "api_key_id": ("api_key_id",),
}

Reader = Annotated[
    Principal | TenantAdmin, Depends(require_any(scope="usage:read", permission="usage:read"))
]
StartTime = Annotated[int, Query(ge=0, le=_MAX_TIME_S, description="Unix seconds, inclusive.")]
EndTime = Annotated[
    int | None, Query(ge=0, le=_MAX_TIME_S, description="Unix seconds, exclusive; default: now.")
]
PageToken = Annotated[str | None, Query(max_length=64)]
Limit = Annotated[int | None, Query(ge=1, le=1440)]


def _choices(name: str) -> object:
    return Query(alias=f"{name}[]", max_length=_MAX_CHOICES)


async def get_filter(
    reader: Reader,
    project_ids: Annotated[list[str] | None, _choices("project_ids")] = None,
    api_key_ids: Annotated[list[str] | None, _choices("api_key_ids")] = None,
    models: Annotated[list[str] | None, _choices("models")] = None,
) -> ReportFilter:
    """OpenAI's filters, within what the reader may see."""
    if isinstance(reader, Principal):
        own = [reader.project_id]
        project_ids = own if project_ids is None else [p for p in project_ids if p in own]
    return ReportFilter(project_ids, api_key_ids, models)


FilterDep = Annotated[ReportFilter, Depends(get_filter)]


@router.get("/usage/completions")
async def get_completions_usage(
    reader: Reader,
    session: ReadSession,
    wanted: FilterDep,
    start_time: StartTime,
    end_time: EndTime = None,
    bucket_width: BucketWidth = "1d",
    group_by: Annotated[list[UsageGroup] | None, _choices("group_by")] = None,
    limit: Limit = None,
    page: PageToken = None,
) -> CompletionsPage:
    """Tokens in whole buckets of UTC, exact to the last request that ended."""
    num_buckets = check_limit(limit, *USAGE_LIMITS[bucket_width])
    ends_at = now() + 1 if end_time is None else end_time
    span = create_span(start_time, ends_at, WIDTHS_S[bucket_width], num_buckets, page)
    keys = _distinct(_USAGE_KEYS[name] for name in group_by or ())
    totals = await ReportRepository(session).sum_up(reader, span, keys, wanted)
    data = [
        CompletionsBucket(
            start_time=start,
            end_time=start + span.width_s,
            results=[_usage_result(keys, values, total) for values, total in groups],
        )
        for start, groups in _buckets(totals, span)
    ]
    return CompletionsPage(data=data, has_more=span.next_page is not None, next_page=span.next_page)


@router.get("/costs")
async def get_costs(
    reader: Reader,
    session: ReadSession,
    wanted: FilterDep,
    start_time: StartTime,
    end_time: EndTime = None,
    bucket_width: Literal["1d"] = "1d",
    group_by: Annotated[list[CostGroup] | None, _choices("group_by")] = None,
    limit: Limit = None,
    page: PageToken = None,
) -> CostsPage:
    """Money in whole days of UTC, before invoices round it."""
    num_buckets = check_limit(limit, *COST_LIMITS)
    ends_at = now() + 1 if end_time is None else end_time
    span = create_span(start_time, ends_at, WIDTHS_S[bucket_width], num_buckets, page)
    keys = _distinct(_COST_KEYS[name] for name in group_by or ())
    repository = ReportRepository(session)
    totals = await repository.sum_up(reader, span, keys, wanted)
    rates = await _rates(repository, keys, totals)
    data = [
        CostsBucket(
            start_time=start,
            end_time=start + span.width_s,
            results=_cost_results(keys, groups, rates),
        )
        for start, groups in _buckets(totals, span)
    ]
    return CostsPage(data=data, has_more=span.next_page is not None, next_page=span.next_page)


def _distinct(keys: Iterable[tuple[Grouping, ...]]) -> list[Grouping]:
    return list(dict.fromkeys(itertools.chain.from_iterable(keys)))


_Groups = list[tuple[tuple[object, ...], UsageTotal]]


def _buckets(totals: Totals, span: Span) -> list[tuple[int, _Groups]]:
    """Every bucket of the span, also without usage, its groups in order."""
    found: dict[int, _Groups] = {start: [] for start in span.bucket_starts}
    for (bucket, values), total in totals.items():
        found[bucket].append((values, total))
    for groups in found.values():
        groups.sort(key=lambda group: [str(value) for value in group[0]])
    return list(found.items())


def _usage_result(
    keys: Sequence[Grouping], values: Sequence[object], total: UsageTotal
) -> CompletionsResult:
    groups: dict[str, Any] = dict(zip(keys, values, strict=True))
    return CompletionsResult(
        input_tokens=total.prompt_tokens,
        output_tokens=total.completion_tokens,
        input_cached_tokens=total.cached_prompt_tokens,
        num_model_requests=total.num_requests,
        **groups,
    )


async def _rates(
    repository: ReportRepository, keys: Sequence[Grouping], totals: Totals
) -> dict[str, tuple[int, int, int]]:
    if "price_id" not in keys:
        return {}
    index = keys.index("price_id")
    return await repository.list_rates({values[index] or "" for _, values in totals})


def _cost_results(
    keys: Sequence[Grouping], groups: _Groups, rates: dict[str, tuple[int, int, int]]
) -> list[CostsResult]:
    """By meter where line items were asked for: a price may have changed within a day."""
    found: dict[tuple[str | None, str | None, str | None], tuple[int, int]] = {}
    for values, total in groups:
        said = {key: None if value is None else str(value) for key, value in
                zip(keys, values, strict=True)}  # fmt: skip
        for line_item, pico, num_tokens in _line_items(said, total, rates):
            key = (said.get("project_id"), said.get("api_key_id"), line_item)
            before = found.get(key, (0, 0))
            found[key] = (before[0] + pico, before[1] + num_tokens)
    return [
        CostsResult(
            amount=Amount(value=pico / _PICO_PER_DOLLAR, value_pico=pico),
            project_id=project_id,
            api_key_id=api_key_id,
            line_item=line_item,
            quantity=None if line_item is None else num_tokens,
        )
        for (project_id, api_key_id, line_item), (pico, num_tokens) in found.items()
    ]


def _line_items(
    said: dict[Grouping, str | None], total: UsageTotal, rates: dict[str, tuple[int, int, int]]
) -> list[tuple[str | None, int, int]]:
    """(line item, picodollars, tokens) of one group."""
    if "price_id" not in said:
        return [(None, total.amount_pico, 0)]
    found = rates.get(said["price_id"] or "", (0, 0, 0))
    num_tokens = (
        total.prompt_tokens - total.cached_prompt_tokens,
        total.cached_prompt_tokens,
        total.completion_tokens,
    )
    meters = ("input", "cached input", "output")
    return [
        (f"{said['base_model']}, {meter}", number * rate, number)
        for meter, number, rate in zip(meters, num_tokens, found, strict=True)
        if number
    ]
