"""Probes and metrics: for machines that watch the server. No key, no tenant's data."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from weft.db.dependencies import DatabaseDep
from weft.errors import NotFoundError
from weft.gateway.readiness import find_fault
from weft.gateway.runtime import GatewayDep
from weft.tenancy.auth import public

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(tags=["probes"], dependencies=[Depends(public)])


@router.get("/livez")
async def livez() -> dict[str, object]:
    """The event loop turns; nothing else is asked."""
    return {"status": "ok"}


@router.get("/readyz", response_class=JSONResponse)
async def readyz(gateway: GatewayDep, database: DatabaseDep) -> JSONResponse:
    """503 with the reason while requests should go elsewhere."""
    reason = await find_fault(gateway, database)
    if reason:
        return JSONResponse({"status": "not ready", "reason": reason}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics", response_class=Response)
async def metrics(gateway: GatewayDep) -> Response:
    """Prometheus' text format. Where there is a port for probes, metrics are there alone: they are
    of all processes, and no client needs them."""
    if gateway.settings.probes_at is not None:
        raise NotFoundError("Metrics are on the server's port for probes.")
    text = gateway.metrics.render() + await gateway.engine_metrics.render()
    return Response(text, media_type=METRICS_TYPE)
