"""A tenant's routes for files in parts, in the shape of OpenAI's uploads."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession

from weft.errors import PayloadTooLargeError
from weft.idempotency.claims import Answer
from weft.idempotency.routes import HeldFilesKey, HeldKey, KeyedRoute
from weft.registry.callers import Reader, Writer
from weft.registry.models import Upload, UploadPart
from weft.registry.runtime import RegistryDep
from weft.registry.uploads import MAX_PART_BYTES, MAX_PARTS
from weft.tenancy.acting import actor_of

router = APIRouter(prefix="/v1/uploads", tags=["adapters"], route_class=KeyedRoute)


class UploadCreate(BaseModel):
    """Body of `POST /v1/uploads`; `filename` says which file of an adapter it will be."""

    model_config = ConfigDict(extra="forbid", strict=True)
    purpose: Literal["adapter"]
    filename: str = Field(max_length=255)
    bytes: int = Field(ge=1, le=2**62)
    mime_type: str = Field(default="application/octet-stream", max_length=255)


class UploadComplete(BaseModel):
    """Body of `POST /v1/uploads/{id}/complete`: the parts in their order."""

    model_config = ConfigDict(extra="forbid", strict=True)
    part_ids: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=MAX_PARTS)
    md5: str | None = Field(default=None, pattern="^[0-9a-fA-F]{32}$")


class FileObject(BaseModel):
    """What the parts have become, once complete."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["adapter"] = "adapter"
    status: Literal["uploaded"] = "uploaded"


class UploadObject(BaseModel):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    mime_type: str
    purpose: Literal["adapter"] = "adapter"
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None


class PartObject(BaseModel):
    """A part that has arrived."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    upload_id: str
    bytes: int
    created_at: int


class UploadWithParts(UploadObject):
    """An upload, and how far it has come."""

    parts: list[PartObject]


def upload_to_wire(upload: Upload) -> UploadObject:
    shared: dict[str, Any] = {
        "id": upload.id,
        "bytes": upload.num_bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
    }
    is_file = upload.status == "completed"
    own: dict[str, Any] = {"mime_type": upload.mime_type, "status": upload.status}
    return UploadObject(**shared, **own, file=FileObject(**shared) if is_file else None)


def part_to_wire(part: UploadPart) -> PartObject:
    return PartObject(
        id=part.id, upload_id=part.upload_id, bytes=part.num_bytes, created_at=part.created_at
    )


@router.post("")
async def create_upload(
    principal: Writer, body: UploadCreate, registry: RegistryDep, keyed: HeldKey
) -> UploadObject:
    """Begin an upload. The source of a version names the completed uploads of its files."""

    async def keep(session: AsyncSession, upload: Upload) -> None:
        assert keyed is not None
        await keyed.keep(session, Answer.of(200, upload_to_wire(upload)))

    upload = await registry.uploads.create(
        principal,
        body.filename,
        body.bytes,
        body.mime_type,
        actor_of(principal),
        None if keyed is None else keep,
    )
    return upload_to_wire(upload)


@router.get("/{upload_id}")
async def get_upload(principal: Reader, upload_id: str, registry: RegistryDep) -> UploadWithParts:
    """With the parts that have arrived, for whoever was broken off."""
    upload, parts = await registry.uploads.get(principal, upload_id)
    return UploadWithParts(
        **upload_to_wire(upload).model_dump(), parts=[part_to_wire(part) for part in parts]
    )


@router.post("/{upload_id}/parts")
async def add_part(
    principal: Writer,
    upload_id: str,
    request: Request,
    registry: RegistryDep,
    keyed: HeldFilesKey,
) -> PartObject:
    """A multipart body with the file `data`, of at most 64 MiB."""
    if int(request.headers.get("content-length") or 0) > MAX_PART_BYTES + 2**20:
        raise PayloadTooLargeError(f"A part has at most {MAX_PART_BYTES} bytes.")
    request.state.max_body_bytes = None  # the file is counted as it is written
    content_type, chunks = request.headers.get("content-type", ""), request.stream()
    if keyed is None:
        part = await registry.uploads.add_part(principal, upload_id, content_type, chunks)
        return part_to_wire(part)

    async def check(file: Path) -> None:
        await keyed.look_up_files(await asyncio.to_thread(_sha256, file))

    async def keep(session: AsyncSession, part: UploadPart) -> None:
        await keyed.keep(session, Answer.of(200, part_to_wire(part)))

    return part_to_wire(
        await registry.uploads.add_part(principal, upload_id, content_type, chunks, check, keep)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@router.post("/{upload_id}/complete")
async def complete_upload(
    principal: Writer,
    upload_id: str,
    body: UploadComplete,
    registry: RegistryDep,
    _keyed: HeldKey,
) -> UploadObject:
    upload = await registry.uploads.complete(
        principal, upload_id, body.part_ids, body.md5, actor_of(principal)
    )
    return upload_to_wire(upload)


@router.post("/{upload_id}/cancel")
async def cancel_upload(
    principal: Writer, upload_id: str, registry: RegistryDep, _keyed: HeldKey
) -> UploadObject:
    return upload_to_wire(await registry.uploads.cancel(principal, upload_id, actor_of(principal)))
