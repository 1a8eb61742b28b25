"""A tenant's routes for files in parts, in the shape of OpenAI's uploads."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from weft.errors import PayloadTooLargeError
from weft.registry.callers import Reader, Writer
from weft.registry.models import Upload, UploadPart
from weft.registry.runtime import RegistryDep
from weft.registry.uploads import MAX_PART_BYTES, MAX_PARTS
from weft.tenancy.acting import actor_of

router = APIRouter(prefix="/v1/uploads", tags=["adapters"])


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


def upload_to_wire(upload: Upload) -> dict[str, object]:
    file = {
        "id": upload.id,
        "object": "file",
        "bytes": upload.num_bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "purpose": "adapter",
        "status": "uploaded",
    }
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.num_bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "mime_type": upload.mime_type,
        "purpose": "adapter",
        "status": upload.status,
        "file": file if upload.status == "completed" else None,
    }


def part_to_wire(part: UploadPart) -> dict[str, object]:
    return {
        "id": part.id,
        "object": "upload.part",
        "upload_id": part.upload_id,
        "bytes": part.num_bytes,
        "created_at": part.created_at,
    }


@router.post("")
async def create_upload(
    principal: Writer, body: UploadCreate, registry: RegistryDep
) -> dict[str, object]:
    """Begin an upload. The source of a version names the completed uploads of its files."""
    upload = await registry.uploads.create(
        principal, body.filename, body.bytes, body.mime_type, actor_of(principal)
    )
    return upload_to_wire(upload)


@router.get("/{upload_id}")
async def get_upload(principal: Reader, upload_id: str, registry: RegistryDep) -> dict[str, object]:
    """With the parts that have arrived, for whoever was broken off."""
    upload, parts = await registry.uploads.get(principal, upload_id)
    return {**upload_to_wire(upload), "parts": [part_to_wire(part) for part in parts]}


@router.post("/{upload_id}/parts")
async def add_part(
    principal: Writer, upload_id: str, request: Request, registry: RegistryDep
) -> dict[str, object]:
    """A multipart body with the file `data`, of at most 64 MiB."""
    if int(request.headers.get("content-length") or 0) > MAX_PART_BYTES + 2**20:
        raise PayloadTooLargeError(f"A part has at most {MAX_PART_BYTES} bytes.")
    request.state.max_body_bytes = None  # the file is counted as it is written
    content_type = request.headers.get("content-type", "")
    part = await registry.uploads.add_part(principal, upload_id, content_type, request.stream())
    return part_to_wire(part)


@router.post("/{upload_id}/complete")
async def complete_upload(
    principal: Writer, upload_id: str, body: UploadComplete, registry: RegistryDep
) -> dict[str, object]:
    upload = await registry.uploads.complete(
        principal, upload_id, body.part_ids, body.md5, actor_of(principal)
    )
    return upload_to_wire(upload)


@router.post("/{upload_id}/cancel")
async def cancel_upload(
    principal: Writer, upload_id: str, registry: RegistryDep
) -> dict[str, object]:
    return upload_to_wire(await registry.uploads.cancel(principal, upload_id, actor_of(principal)))
