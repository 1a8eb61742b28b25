"""A tenant's route for its own usage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from weft.db.dependencies import ReadSession
from weft.db.ids import now
from weft.tenancy.auth import require
from weft.tenancy.principal import Principal
from weft.usage.report_repository import Grouping, ReportRepository, UsageTotal

_GROUPING: Sequence[Grouping] = ("model", "adapter_id", "adapter_version", "adapter_digest")
router = APIRouter(prefix="/v1/usage", tags=["usage"])


@router.get("")
async def get_usage(
    principal: Annotated[Principal, Depends(require("usage:read"))],
    session: ReadSession,
    start_time: Annotated[int | None, Query(ge=0, le=2**40)] = None,
    end_time: Annotated[int | None, Query(ge=0, le=2**40)] = None,
) -> dict[str, object]:
    """One bucket with a result per model, over events that ended in [start_time, end_time)."""
    totals = await ReportRepository(session).sum_up_between(
        principal, start_time, end_time, _GROUPING
    )
    bucket = {
        "object": "bucket",
        "start_time": start_time or 0,
        "end_time": now() if end_time is None else end_time,
        "results": [_result_to_wire(*each) for each in sorted(totals.items(), key=_order)],
    }
    return {"object": "page", "data": [bucket], "has_more": False, "next_page": None}


def _order(each: tuple[tuple[Any, ...], UsageTotal]) -> tuple[Any, ...]:
    """By the groups' values, those without one first."""
    return tuple((value is not None, value or "") for value in each[0])


def _result_to_wire(values: tuple[Any, ...], total: UsageTotal) -> dict[str, object]:
    model, adapter_id, adapter_version, adapter_digest = values
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": total.prompt_tokens,
        "output_tokens": total.completion_tokens,
        "input_cached_tokens": total.cached_prompt_tokens,
        "num_model_requests": total.num_requests,
        "project_id": None,
        "user_id": None,
        "api_key_id": None,
        "model": model,
        "batch": None,
        "adapter_id": adapter_id,
        "adapter_version": adapter_version,
        "adapter_digest": adapter_digest,
    }
