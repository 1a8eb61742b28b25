"""A tenant's routes for where its versions are: hints to load and unload, and pins."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from weft.audit import Target, record
from weft.db.dependencies import DatabaseDep
from weft.errors import ConflictError
from weft.idempotency.routes import HeldKey, KeyedRoute
from weft.messages import AdapterLevel
from weft.registry import service
from weft.registry.callers import Caller, Reader, Writer
from weft.registry.maintenance_repository import MaintenanceRepository
from weft.registry.models import Adapter, AdapterVersion
from weft.registry.runtime import Registry, RegistryDep
from weft.tenancy.acting import actor_of

Number = Annotated[int, Path(ge=1, le=2**31)]

# of one server, which has one engine
_REPLICA = "0"

router = APIRouter(
    prefix="/v1/adapters/{name}/versions/{number}", tags=["adapters"], route_class=KeyedRoute
)


class PlacementObject(BaseModel):
    """Where a version is on one replica."""

    object: Literal["adapter.placement"] = "adapter.placement"
    replica: str = _REPLICA
    tier: AdapterLevel
    state: str
    pinned: bool
    num_running: int
    num_bytes: int


class PlacementsObject(BaseModel):
    """Where a version is."""

    object: Literal["adapter.placements"] = "adapter.placements"
    model: str
    digest: str
    pinned: bool
    data: list[PlacementObject]


@router.get("/placements")
async def get_placements(
    principal: Reader, name: str, number: Number, database: DatabaseDep, registry: RegistryDep
) -> PlacementsObject:
    """The tier that the version is on, on each replica."""
    async with database.reading() as session:
        adapter, version = await service.get_ready_version(session, principal, name, number)
    return await _placements(registry, adapter, version)


@router.post(":load", status_code=202)
async def load(
    principal: Writer,
    name: str,
    number: Number,
    database: DatabaseDep,
    registry: RegistryDep,
    _keyed: HeldKey,
) -> PlacementsObject:
    """Have it brought to the device. A hint: others may need the room more."""
    async with database.reading() as session:
        adapter, version = await service.get_ready_version(session, principal, name, number)
    assert version.digest is not None, "it is ready"
    registry.prefetch(version.digest)
    return await _placements(registry, adapter, version)


@router.post(":unload", status_code=202)
async def unload(
    principal: Writer,
    name: str,
    number: Number,
    database: DatabaseDep,
    registry: RegistryDep,
    _keyed: HeldKey,
) -> PlacementsObject:
    """Have it leave device and host memory. A hint: requests that use it keep it there, and so
    does another tenant that has the same bytes."""
    async with database.reading() as session:
        adapter, version = await service.get_ready_version(session, principal, name, number)
        if version.is_pinned:
            raise ConflictError(f"'{name}@v{number}' is pinned.", code="adapter_pinned")
        is_shared = await MaintenanceRepository(session).is_shared(version)
    if not is_shared:
        assert version.digest is not None, "it is ready"
        await registry.engine.unload_adapter(version.digest)
    return await _placements(registry, adapter, version)


@router.post(":pin")
async def pin(
    principal: Writer,
    name: str,
    number: Number,
    database: DatabaseDep,
    registry: RegistryDep,
    _keyed: HeldKey,
) -> PlacementsObject:
    """Have it loaded, and stay. It is remembered over restarts; a tenant has few pins."""
    return await _set_pinned(principal, name, number, database, registry, is_pinned=True)


@router.post(":unpin")
async def unpin(
    principal: Writer,
    name: str,
    number: Number,
    database: DatabaseDep,
    registry: RegistryDep,
    _keyed: HeldKey,
) -> PlacementsObject:
    return await _set_pinned(principal, name, number, database, registry, is_pinned=False)


async def _set_pinned(
    principal: Caller,
    name: str,
    number: int,
    database: DatabaseDep,
    registry: Registry,
    *,
    is_pinned: bool,
) -> PlacementsObject:
    async with database.writing() as session:
        adapter, version = await service.set_pinned(
            session, principal, name, number, is_pinned, registry.publisher.quota
        )
        await record(
            session,
            actor_of(principal),
            "adapter.version.pinned" if is_pinned else "adapter.version.unpinned",
            Target(version.id, version.tenant_id),
            {"adapter": name, "version": number},
        )
    await registry.pins.reconcile()
    if is_pinned:
        assert version.digest is not None, "it is ready"
        registry.prefetch(version.digest)
    return await _placements(registry, adapter, version)


async def _placements(
    registry: Registry, adapter: Adapter, version: AdapterVersion
) -> PlacementsObject:
    assert version.digest is not None, "it is ready"
    found = await registry.engine.placements(version.digest)
    return PlacementsObject(
        model=f"{adapter.name}@v{version.number}",
        digest=version.digest,
        pinned=version.is_pinned,
        data=[
            PlacementObject(
                tier=placement.level,
                state=placement.state,
                pinned=placement.is_pinned,
                num_running=placement.num_references,
                num_bytes=placement.num_bytes,
            )
            for placement in found
        ],
    )
