"""Probes and metrics: for machines that watch the server. No key, no tenant's data."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from sqlalchemy import text
from starlette.responses import JSONResponse, Response

from weft.db.dependencies import DatabaseDep
from weft.db.scope import unscoped
from weft.gateway.runtime import GatewayDep
from weft.tenancy.auth import public

router = APIRouter(tags=["probes"], dependencies=[Depends(public)])


@router.get("/livez")
async def livez() -> dict[str, object]:
    """The event loop turns; nothing else is asked."""
    return {"status": "ok"}


@router.get("/readyz", response_class=JSONResponse)
async def readyz(gateway: GatewayDep, database: DatabaseDep) -> JSONResponse:
    """503 with the reason while requests should go elsewhere."""
    reason = gateway.not_ready_reason
    if reason:
        return JSONResponse({"status": "not ready", "reason": reason}, 503)
    async with database.reading() as session:
        await session.execute(unscoped(text("SELECT 1"), "asks whether the database answers"))
    return JSONResponse({"status": "ok"})


@router.get("/metrics", response_class=Response)
async def metrics(gateway: GatewayDep) -> Response:
    """Prometheus' text format."""
    return Response(
        await gateway.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )
