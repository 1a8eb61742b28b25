"""A tenant's routes for its adapters."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from weft.db.dependencies import DatabaseDep, PageDep, ReadSession, WriteSession
from weft.errors import AdapterInvalidError, PayloadTooLargeError
from weft.registry import service
from weft.registry.intake import receive_adapter
from weft.registry.repository import RegistryRepository
from weft.registry.schemas import AdapterCreate, adapter_to_wire, version_to_wire
from weft.registry.service import ServedBase
from weft.tenancy.auth import require
from weft.tenancy.principal import Principal
from weft_adapters.sites import BaseSpec
from weft_adapters.store import AdapterStore
from weft_adapters.validation import ValidationReport, validate


@dataclass(frozen=True, slots=True)
class Registry:
    """What the adapter routes need beside the database. `prefetch` hints the engine."""

    base: ServedBase
    spec: BaseSpec
    store: AdapterStore
    uploads_dir: pathlib.Path
    max_upload_bytes: int
    max_rank: int
    prefetch: Callable[[str], None]


def get_registry(request: Request) -> Registry:
    """The app's registry."""
    registry: Registry = request.app.state.registry
    return registry


RegistryDep = Annotated[Registry, Depends(get_registry)]
Reader = Annotated[Principal, Depends(require("adapters:read"))]
Number = Annotated[int, Path(ge=1, le=2**31)]
Writer = Annotated[Principal, Depends(require("adapters:write"))]

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])


@router.post("", status_code=201)
async def create_adapter(
    principal: Writer, body: AdapterCreate, session: WriteSession, registry: RegistryDep
) -> dict[str, object]:
    adapter = await service.create_adapter(
        session,
        principal,
        registry.base,
        name=body.name,
        base_model=body.base_model,
        description=body.description,
        tags=body.tags,
    )
    return adapter_to_wire(adapter, [])


@router.get("")
async def list_adapters(
    principal: Reader, session: ReadSession, page: PageDep
) -> dict[str, object]:
    found = await RegistryRepository(session, principal).list_adapters(page)
    return found.to_wire(adapter_to_wire)


@router.get("/{name}")
async def get_adapter(principal: Reader, name: str, session: ReadSession) -> dict[str, object]:
    adapter = await service.get_adapter(session, principal, name)
    aliases = await RegistryRepository(session, principal).list_aliases(adapter)
    return adapter_to_wire(adapter, aliases)


@router.delete("/{name}")
async def delete_adapter(principal: Writer, name: str, session: WriteSession) -> dict[str, object]:
    adapter = await service.delete_adapter(session, principal, name)
    return {"id": adapter.id, "object": "adapter.deleted", "name": name, "deleted": True}


@router.post("/{name}/versions", status_code=201)
async def upload_version(
    principal: Writer,
    name: str,
    request: Request,
    response: Response,
    database: DatabaseDep,
    registry: RegistryDep,
) -> dict[str, object]:
    """Multipart files `adapter_config.json` and `adapter_model.safetensors`.

    201 with the new version; 200 with the version there is when the digest is the same.
    """
    async with database.reading() as session:  # refuse before the bytes come
        await service.get_adapter(session, principal, name)
    if int(request.headers.get("content-length") or 0) > registry.max_upload_bytes + 2**21:
        raise PayloadTooLargeError(f"An upload has at most {registry.max_upload_bytes} bytes.")
    # the intake counts each file for itself; the app's small limit must not apply
    request.state.max_body_bytes = None
    report = await _take_in(request, registry)
    async with database.writing() as session:  # the bytes are durable by now
        adapter, version, is_new = await service.add_version(
            session, principal, registry.base, name, report
        )
    registry.prefetch(version.digest)
    response.status_code = 201 if is_new else 200
    return version_to_wire(adapter, version)


async def _take_in(request: Request, registry: Registry) -> ValidationReport:
    content_type = request.headers.get("content-type", "")
    async with receive_adapter(
        content_type, request.stream(), registry.uploads_dir, registry.max_upload_bytes
    ) as received:
        report = await asyncio.to_thread(
            validate,
            received.config_bytes,
            received.tensors_path,
            registry.spec,
            max_rank=registry.max_rank,
            declared_base=registry.base.name,
        )
        if report.digest is None:
            faults = [fault.to_dict() for fault in report.faults]
            raise AdapterInvalidError(
                f"The adapter cannot be served: {report.faults[0].message}", details=faults
            )
        await asyncio.to_thread(
            registry.store.put, report.digest, received.config_bytes, received.tensors_path
        )
        return report


@router.get("/{name}/versions")
async def list_versions(
    principal: Reader, name: str, session: ReadSession, page: PageDep
) -> dict[str, object]:
    adapter = await service.get_adapter(session, principal, name)
    found = await RegistryRepository(session, principal).list_versions(adapter, page)
    return found.to_wire(lambda version: version_to_wire(adapter, version))


@router.get("/{name}/versions/{number}")
async def get_version(
    principal: Reader, name: str, number: Number, session: ReadSession
) -> dict[str, object]:
    return version_to_wire(*await service.get_version(session, principal, name, number))


@router.delete("/{name}/versions/{number}")
async def delete_version(
    principal: Writer, name: str, number: Number, session: WriteSession
) -> dict[str, object]:
    version = await service.delete_version(session, principal, name, number)
    return {"id": version.id, "object": "adapter.version.deleted", "deleted": True}
