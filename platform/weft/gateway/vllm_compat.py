"""vLLM's routes for loading and unloading adapters at run time, for what drives vLLM that way.

What is loaded is a version that the caller's tenant has registered, never a path of this machine:

    lora_path   <adapter>, <adapter>@<alias>, <adapter>@v<N>, or a version's digest
    lora_name   what requests will say: <adapter> or <adapter>@<alias>, of the same adapter

Loading points that alias at the version, if need be, and returns when the engine has it. Unloading
takes it off the engine when its requests have ended; registered, it can still be called, and is
loaded again when it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import PlainTextResponse

from weft.audit import Target, record
from weft.db.dependencies import DatabaseDep
from weft.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    WeftError,
)
from weft.gateway.runtime import Gateway, GatewayDep
from weft.idempotency.routes import HeldKey, KeyedRoute
from weft.registry import aliases
from weft.registry.maintenance_repository import MaintenanceRepository
from weft.registry.models import AdapterVersion, VersionState
from weft.registry.names import DEFAULT_ALIAS, ModelName, try_parse_model_name
from weft.registry.repository import RegistryRepository
from weft.registry.service import ResolvedModel, resolve_model
from weft.tenancy.acting import actor_of
from weft.tenancy.auth import require
from weft.tenancy.principal import Principal
from weft_adapters.digest import is_digest

router = APIRouter(
    prefix="/v1",
    tags=["adapters"],
    default_response_class=PlainTextResponse,
    route_class=KeyedRoute,
)

Writer = Annotated[Principal, Depends(require("adapters:write"))]
_ON_DEVICE = ("device", "draining")
_POLL_S = 0.02
_WAIT_S = 60.0


class InvalidUserInputError(InvalidRequestError):
    """vLLM's type for a request that it does not understand."""

    type = "InvalidUserInput"


class LoraNotFoundError(NotFoundError):
    """vLLM's type for an adapter that is not there."""

    type = "NotFoundError"


class LoadFailedError(WeftError):
    """vLLM's type for an adapter that is there and cannot be loaded."""

    type = "InternalServerError"
    code = "adapter_unavailable"


class LoadLora(BaseModel):
    """Body of `POST /v1/load_lora_adapter`. `base_model_name` is the served base or nothing; how
    the factors of experts lie is told by the tensors, whatever `is_3d_lora_weight` says."""

    model_config = ConfigDict(extra="forbid", strict=True)
    lora_name: str = Field(default="", max_length=256)
    lora_path: str = Field(default="", max_length=1024)
    load_inplace: bool = False
    base_model_name: str | None = Field(default=None, max_length=256)
    is_3d_lora_weight: bool | None = None


class UnloadLora(BaseModel):
    """Body of `POST /v1/unload_lora_adapter`. An adapter has no number here."""

    model_config = ConfigDict(extra="forbid", strict=True)
    lora_name: str = Field(default="", max_length=256)
    lora_int_id: None = None


@router.post("/load_lora_adapter")
async def load_lora_adapter(
    principal: Writer, body: LoadLora, database: DatabaseDep, gateway: GatewayDep, _keyed: HeldKey
) -> PlainTextResponse:
    """vLLM's, for a registered version."""
    if not body.lora_name or not body.lora_path:
        raise InvalidUserInputError("Both 'lora_name' and 'lora_path' must be provided.")
    if body.base_model_name not in (None, gateway.base.name):
        raise InvalidUserInputError(
            f"The base model '{body.base_model_name}' is not served here.", param="base_model_name"
        )
    async with database.writing() as session:
        version = await _find_version(session, principal, gateway, body)
        assert version.digest is not None, "a ready version has its digest"
        is_moved = await _point(session, principal, gateway, body, version)
    if not is_moved and not body.load_inplace and await _is_on_device(gateway, version.digest):
        raise _already_loaded(body.lora_name)
    await _bring(gateway, body.lora_name, version.digest)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/unload_lora_adapter")
async def unload_lora_adapter(
    principal: Writer, body: UnloadLora, database: DatabaseDep, gateway: GatewayDep, _keyed: HeldKey
) -> PlainTextResponse:
    """vLLM's; the version stays registered."""
    if not body.lora_name:
        raise InvalidUserInputError("'lora_name' must be provided to unload a LoRA adapter.")
    missing = LoraNotFoundError(f"The lora adapter '{body.lora_name}' cannot be found.")
    async with database.reading() as session:
        try:
            model = await resolve_model(session, principal, gateway.base, body.lora_name)
        except ModelNotFoundError:
            raise missing from None
        version = await _version_of(session, principal, model)
        if version is None or version.digest is None:
            raise missing
        if version.is_pinned:
            raise InvalidUserInputError(
                f"The lora adapter '{body.lora_name}' is pinned.", param="lora_name"
            )
        is_shared = await MaintenanceRepository(session).is_shared(version)
    placements = await gateway.engine.placements(version.digest)
    if all(p.level == "remote" for p in placements):
        raise missing
    if not is_shared:  # another tenant with the same bytes may be using them
        await gateway.engine.unload_adapter(version.digest)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def _find_version(
    session: AsyncSession, principal: Principal, gateway: Gateway, body: LoadLora
) -> AdapterVersion:
    """What `lora_path` names; LoraNotFoundError for anything that the tenant has not registered."""
    found = None
    if is_digest(body.lora_path):
        found = await _find_by_digest(session, principal, gateway, body)
    else:
        with contextlib.suppress(ModelNotFoundError):
            model = await resolve_model(session, principal, gateway.base, body.lora_path)
            found = await _version_of(session, principal, model)
    if found is None:
        raise LoraNotFoundError(
            f"Loading lora {body.lora_name} failed: No adapter found for {body.lora_path}",
            param="lora_path",
        )
    return found


async def _find_by_digest(
    session: AsyncSession, principal: Principal, gateway: Gateway, body: LoadLora
) -> AdapterVersion | None:
    """Two adapters may have the same bytes: it is one of that which `lora_name` names."""
    name = _parse(body.lora_name, gateway)
    repository = RegistryRepository(session, principal)
    adapter = None if name is None else await repository.find_adapter(name.adapter)
    if adapter is None:
        return None
    version = await repository.find_version_by_digest(adapter, body.lora_path)
    is_ready = version is not None and version.state == VersionState.READY
    return version if is_ready else None


def _parse(lora_name: str, gateway: Gateway) -> ModelName | None:
    return try_parse_model_name(lora_name.removeprefix(f"{gateway.base.name}:"))


async def _version_of(
    session: AsyncSession, principal: Principal, model: ResolvedModel
) -> AdapterVersion | None:
    """None for the base."""
    if model.version is None or model.adapter_id is None:
        return None
    repository = RegistryRepository(session, principal)
    adapter = await repository.find_adapter_by_id(model.adapter_id)
    return None if adapter is None else await repository.find_version(adapter, model.version)


async def _point(
    session: AsyncSession,
    principal: Principal,
    gateway: Gateway,
    body: LoadLora,
    version: AdapterVersion,
) -> bool:
    """Have `lora_name` mean the version; True where it did not before."""
    repository = RegistryRepository(session, principal)
    adapter = await repository.find_adapter_by_id(version.adapter_id)
    name = _parse(body.lora_name, gateway)
    assert adapter is not None, "its version was found"
    if name is None or name.adapter != adapter.name or name.number not in (None, version.number):
        raise InvalidUserInputError(
            f"'lora_name' must be '{adapter.name}' or an alias of it, such as "
            f"'{adapter.name}@{DEFAULT_ALIAS}': adapters have the names that they are registered "
            "under.",
            param="lora_name",
        )
    if name.number is not None:
        return False
    return await _move_alias(session, principal, body, name, version)


async def _move_alias(
    session: AsyncSession,
    principal: Principal,
    body: LoadLora,
    name: ModelName,
    version: AdapterVersion,
) -> bool:
    current = await RegistryRepository(session, principal).resolve(name)
    if current is not None and current[1].id == version.id:
        return False
    if current is not None and not body.load_inplace:
        raise _already_loaded(body.lora_name)
    adapter, moved, _ = await aliases.set_alias(
        session, principal, name.adapter, name.alias or DEFAULT_ALIAS, version.number
    )
    await record(
        session,
        actor_of(principal),
        "adapter.alias.updated",
        Target(adapter.id, adapter.tenant_id),
        {"adapter": adapter.name, "alias": moved.name, "version": version.number},
    )
    return True


def _already_loaded(lora_name: str) -> InvalidUserInputError:
    return InvalidUserInputError(
        f"The lora adapter '{lora_name}' has already been loaded. If you want to load the adapter "
        "in place, set 'load_inplace' to True.",
        param="lora_name",
    )


async def _is_on_device(gateway: Gateway, digest: str) -> bool:
    return any(p.state in _ON_DEVICE for p in await gateway.engine.placements(digest))


async def _bring(gateway: Gateway, lora_name: str, digest: str) -> None:
    """Wait until the engine has it on the device."""
    give_up_s = time.monotonic() + _WAIT_S
    while not await _is_on_device(gateway, digest):
        gateway.engine.prefetch_adapter(digest)
        failures = [p.failure for p in await gateway.engine.placements(digest) if p.failure]
        if failures:
            raise LoadFailedError(f"Loading lora {lora_name} failed: {failures[0]}")
        if time.monotonic() > give_up_s:
            raise OverloadedError(
                f"The lora adapter '{lora_name}' is still being loaded.",
                retry_after_s=5,
                code="adapter_loading",
            )
        await asyncio.sleep(_POLL_S)
