"""A tenant's route for its own usage."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from weft.db.dependencies import ReadSession
from weft.db.ids import now
from weft.tenancy.auth import require
from weft.tenancy.principal import Principal
from weft.usage.repository import UsageRepository, UsageSum

router = APIRouter(prefix="/v1/usage", tags=["usage"])


@router.get("")
async def get_usage(
    principal: Annotated[Principal, Depends(require("usage:read"))],
    session: ReadSession,
    start_time: Annotated[int | None, Query(ge=0, le=2**40)] = None,
    end_time: Annotated[int | None, Query(ge=0, le=2**40)] = None,
) -> dict[str, object]:
    """One bucket with a result per model, over events that ended in [start_time, end_time)."""
    sums = await UsageRepository(session).sum_by_model(
        principal,
        None if start_time is None else start_time * 1000,
        None if end_time is None else end_time * 1000,
    )
    bucket = {
        "object": "bucket",
        "start_time": start_time or 0,
        "end_time": now() if end_time is None else end_time,
        "results": [_result_to_wire(row) for row in sums],
    }
    return {"object": "page", "data": [bucket], "has_more": False, "next_page": None}


def _result_to_wire(row: UsageSum) -> dict[str, object]:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": row.prompt_tokens,
        "output_tokens": row.completion_tokens,
        "input_cached_tokens": row.cached_prompt_tokens,
        "num_model_requests": row.num_requests,
        "project_id": None,
        "user_id": None,
        "api_key_id": None,
        "model": row.model,
        "batch": None,
        "adapter_id": row.adapter_id,
        "adapter_version": row.adapter_version,
        "adapter_digest": row.adapter_digest,
    }
