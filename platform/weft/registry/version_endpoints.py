"""A tenant's routes for the versions of its adapters, and the operator's for purging them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from weft.audit import Target, record
from weft.db.dependencies import DatabaseDep, PageDep, ReadSession
from weft.db.lists import ListOf
from weft.errors import PayloadTooLargeError
from weft.idempotency.claims import Answer
from weft.idempotency.routes import HeldFilesKey, HeldKey, KeyedRequest, KeyedRoute
from weft.registry import service
from weft.registry.callers import Caller, Reader, Writer
from weft.registry.intake import part_rules, receive_adapter
from weft.registry.models import VersionState
from weft.registry.publishing import Keep, Published, keep_nothing
from weft.registry.repository import LISTED, RegistryRepository
from weft.registry.runtime import Registry, RegistryDep
from weft.registry.schemas import DeletedVersion, VersionObject, parse_source, version_to_wire
from weft.tenancy.acting import actor_of
from weft.tenancy.auth import require_operator
from weft.tenancy.principal import Operator

Number = Annotated[int, Path(ge=1, le=2**31)]

router = APIRouter(tags=["adapters"], route_class=KeyedRoute)
_VERSIONS = "/v1/adapters/{name}/versions"
_MAX_FRAMING_BYTES = 2**20


@router.post(
    _VERSIONS,
    status_code=201,
    responses={200: {"model": VersionObject}, 202: {"model": VersionObject}},
)
async def create_version(
    principal: Writer,
    name: str,
    request: Request,
    response: Response,
    database: DatabaseDep,
    registry: RegistryDep,
    keyed: HeldFilesKey,
) -> VersionObject:
    """Multipart files `adapter_config.json` and `adapter_model.safetensors`, perhaps `README.md`
    and those of a tokenizer: 201 with the new version, 200 with the one there is when the digest is
    the same.

    Or JSON with a `source`: 202 with a version whose state says what becomes of it.
    """
    async with database.reading() as session:  # refuse before the bytes come
        await service.get_adapter(session, principal, name)
    if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        source = parse_source(await request.body())
        published = await registry.importer.submit(
            principal, name, source, _keep_for(keyed), actor_of(principal)
        )
    else:
        published = await _receive(principal, name, request, registry, keyed)
    if published.version.state == VersionState.READY and published.version.digest is not None:
        registry.prefetch(published.version.digest)
    response.status_code = published.status_code
    response.headers["location"] = _location(published)
    return version_to_wire(published.adapter, published.version)


def _location(published: Published) -> str:
    return f"/v1/adapters/{published.adapter.name}/versions/{published.version.number}"


def _keep_for(keyed: KeyedRequest | None) -> Keep:
    """Keeps the answer in the transaction that makes the version ready, or promises it."""
    if keyed is None:
        return keep_nothing

    async def keep(session: AsyncSession, published: Published) -> None:
        wire = version_to_wire(published.adapter, published.version)
        location = _location(published)
        await keyed.keep(session, Answer.of(published.status_code, wire, location=location))

    return keep


async def _receive(
    principal: Caller,
    name: str,
    request: Request,
    registry: Registry,
    keyed: KeyedRequest | None,
) -> Published:
    max_bytes = registry.max_upload_bytes
    most = sum(rule.max_bytes for rule in part_rules(max_bytes).values()) + _MAX_FRAMING_BYTES
    if int(request.headers.get("content-length") or 0) > most:
        raise PayloadTooLargeError(f"The tensors of an upload have at most {max_bytes} bytes.")
    # the intake counts each file for itself; the app's small limit must not apply
    request.state.max_body_bytes = None
    content_type = request.headers.get("content-type", "")
    async with receive_adapter(
        content_type, request.stream(), registry.uploads_dir, max_bytes
    ) as files:
        if keyed is not None:
            await keyed.look_up_files(await asyncio.to_thread(files.sha256))
        return await registry.publisher.publish(
            principal, name, files, _keep_for(keyed), actor=actor_of(principal)
        )


@router.get(_VERSIONS)
async def list_versions(
    principal: Reader,
    name: str,
    session: ReadSession,
    page: PageDep,
    state: Annotated[VersionState | None, Query()] = None,
) -> ListOf[VersionObject]:
    """Those that are archived or purged only where their `state` is asked for."""
    adapter = await service.get_adapter(session, principal, name)
    states = LISTED if state is None else (state,)
    found = await RegistryRepository(session, principal).list_versions(adapter, page, states)
    return ListOf[VersionObject].of(found, lambda version: version_to_wire(adapter, version))


@router.get(_VERSIONS + "/{number}")
async def get_version(
    principal: Reader, name: str, number: Number, session: ReadSession
) -> VersionObject:
    return version_to_wire(*await service.get_version(session, principal, name, number))


@router.delete(_VERSIONS + "/{number}")
async def delete_version(
    principal: Writer, name: str, number: Number, database: DatabaseDep, registry: RegistryDep
) -> DeletedVersion:
    """409 while an alias points at it. Requests in flight finish; the files are purged later."""
    async with database.writing() as session:
        version = await service.delete_version(session, principal, name, number)
        target = Target(version.id, version.tenant_id)
        changes = {"adapter": name, "version": number}
        await record(session, actor_of(principal), "adapter.version.deleted", target, changes)
    await registry.pins.reconcile()
    return DeletedVersion(id=version.id)


class Purge(BaseModel):
    """Body of `POST /admin/v1/adapters:purge`. Default: the server's retention time."""

    model_config = ConfigDict(extra="forbid", strict=True)
    retention_s: int | None = Field(default=None, ge=0, le=2**31)


class PurgeObject(BaseModel):
    """What was purged, and how many digests a later purge has to see to."""

    object: Literal["adapters.purge"] = "adapters.purge"
    num_versions: int
    num_digests: int
    num_deferred: int


@router.post("/admin/v1/adapters:purge")
async def purge(
    operator: Annotated[Operator, Depends(require_operator("platform:write"))],
    body: Purge,
    registry: RegistryDep,
    _keyed: HeldKey,
) -> PurgeObject:
    """Remove the files of versions that were deleted at least `retention_s` ago, of all tenants."""
    retention_s = registry.retention_s if body.retention_s is None else body.retention_s
    done = await registry.purger.purge(retention_s, actor_of(operator))
    return PurgeObject(
        num_versions=done.num_versions,
        num_digests=done.num_digests,
        num_deferred=done.num_deferred,
    )
