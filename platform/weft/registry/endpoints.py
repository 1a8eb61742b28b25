"""A tenant's routes for its adapters and their aliases."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from weft.audit import Target, record
from weft.db.dependencies import DatabaseDep, PageDep, ReadSession, WriteSession
from weft.db.lists import ListOf
from weft.idempotency.routes import KeyedRoute
from weft.registry import aliases, service
from weft.registry.callers import Reader, Writer
from weft.registry.repository import RegistryRepository
from weft.registry.runtime import RegistryDep
from weft.registry.schemas import (
    AdapterCreate,
    AdapterObject,
    AliasList,
    AliasMove,
    AliasObject,
    DeletedAdapter,
    DeletedAlias,
    ListedAdapter,
    adapter_to_wire,
    alias_to_wire,
    listed_to_wire,
)
from weft.tenancy.acting import actor_of

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], route_class=KeyedRoute)


@router.post("", status_code=201)
async def create_adapter(
    principal: Writer, body: AdapterCreate, session: WriteSession, registry: RegistryDep
) -> AdapterObject:
    adapter = await service.create_adapter(
        session,
        principal,
        registry.publisher.base,
        name=body.name,
        base_model=body.base_model,
        description=body.description,
        tags=body.tags,
        quota=registry.publisher.quota,
    )
    target = Target(adapter.id, adapter.tenant_id)
    changes = body.model_dump(include={"name", "base_model", "tags"})
    await record(session, actor_of(principal), "adapter.created", target, changes)
    return adapter_to_wire(adapter, [])


@router.get("")
async def list_adapters(
    principal: Reader, session: ReadSession, page: PageDep
) -> ListOf[ListedAdapter]:
    found = await RegistryRepository(session, principal).list_adapters(page)
    return ListOf[ListedAdapter].of(found, listed_to_wire)


@router.get("/{name}")
async def get_adapter(principal: Reader, name: str, session: ReadSession) -> AdapterObject:
    adapter = await service.get_adapter(session, principal, name)
    aliases = await RegistryRepository(session, principal).list_aliases(adapter)
    return adapter_to_wire(adapter, aliases)


@router.delete("/{name}")
async def delete_adapter(
    principal: Writer, name: str, database: DatabaseDep, registry: RegistryDep
) -> DeletedAdapter:
    async with database.writing() as session:
        adapter = await service.delete_adapter(session, principal, name)
        target = Target(adapter.id, adapter.tenant_id)
        await record(session, actor_of(principal), "adapter.deleted", target, {"name": name})
    await registry.pins.reconcile()
    return DeletedAdapter(id=adapter.id, name=name)


@router.get("/{name}/aliases")
async def list_aliases(principal: Reader, name: str, session: ReadSession) -> AliasList:
    adapter = await service.get_adapter(session, principal, name)
    found = await RegistryRepository(session, principal).list_aliases(adapter)
    return AliasList(data=[alias_to_wire(adapter, alias, number) for alias, number in found])


@router.put("/{name}/aliases/{alias}")
async def move_alias(
    principal: Writer, name: str, alias: str, body: AliasMove, session: WriteSession
) -> AliasObject:
    """Atomic; 409 where it is not at `expected_version`. Requests in flight are untouched."""
    adapter, moved, version = await aliases.set_alias(
        session, principal, name, alias, body.version, body.expected
    )
    await record(
        session,
        actor_of(principal),
        "adapter.alias.updated",
        Target(adapter.id, adapter.tenant_id),
        {"adapter": name, "alias": alias, "version": version.number},
    )
    return alias_to_wire(adapter, moved, version.number)


@router.delete("/{name}/aliases/{alias}")
async def delete_alias(
    principal: Writer,
    name: str,
    alias: str,
    session: WriteSession,
    expected_version: Annotated[int | None, Query(ge=1, le=2**31)] = None,
) -> DeletedAlias:
    expected: aliases.Expected = "any" if expected_version is None else expected_version
    adapter = await aliases.delete_alias(session, principal, name, alias, expected)
    target = Target(adapter.id, adapter.tenant_id)
    changes = {"adapter": name, "alias": alias}
    await record(session, actor_of(principal), "adapter.alias.deleted", target, changes)
    return DeletedAlias(id=alias, adapter=name)
