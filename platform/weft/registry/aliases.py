"""Movable pointers to versions. Each function works in the caller's transaction."""

from __future__ import annotations

from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import now
from weft.db.scope import Owner
from weft.errors import ConflictError, InvalidRequestError, NotFoundError
from weft.registry.models import Adapter, AdapterAlias, AdapterVersion
from weft.registry.names import DEFAULT_ALIAS, is_alias_name
from weft.registry.repository import RegistryRepository
from weft.registry.service import get_adapter, get_ready_version

# the version that an alias is believed to be at; None: it is believed not to exist
Expected = int | None | Literal["any"]


async def set_alias(
    session: AsyncSession,
    owner: Owner,
    adapter_name: str,
    alias_name: str,
    number: int,
    expected: Expected = "any",
) -> tuple[Adapter, AdapterAlias, AdapterVersion]:
    """Point the alias at a ready version, if it points at `expected` now (None: at nothing).

    Requests that were admitted before keep the version that they were admitted with.
    """
    if not is_alias_name(alias_name):
        raise InvalidRequestError(
            "An alias is 1 to 63 of a-z, 0-9, '.', '_' and '-', begins with a letter or digit, has "
            "no '..' and is not a version such as 'v3'.",
            param="alias",
        )
    adapter, version = await get_ready_version(session, owner, adapter_name, number)
    repository = RegistryRepository(session, owner)
    alias = await repository.find_alias(adapter, alias_name)
    await _check_expected(repository, adapter, alias_name, alias, expected)
    alias = await _point(repository, adapter, alias, alias_name, version)
    return adapter, alias, version


async def delete_alias(
    session: AsyncSession,
    owner: Owner,
    adapter_name: str,
    alias_name: str,
    expected: Expected = "any",
) -> Adapter:
    adapter = await get_adapter(session, owner, adapter_name)
    repository = RegistryRepository(session, owner)
    alias = await repository.find_alias(adapter, alias_name)
    if alias is None:
        raise NotFoundError(f"'{adapter_name}' has no alias '{alias_name}'.")
    await _check_expected(repository, adapter, alias_name, alias, expected)
    await repository.delete_alias(alias)
    return adapter


async def follow_newest(
    repository: RegistryRepository, adapter: Adapter, version: AdapterVersion
) -> None:
    """Move `default` to a version that has become ready, unless it is at a newer one."""
    alias = await repository.find_alias(adapter, DEFAULT_ALIAS)
    if alias is None or await _number_of(repository, adapter, alias) < version.number:
        await _point(repository, adapter, alias, DEFAULT_ALIAS, version)


async def _point(
    repository: RegistryRepository,
    adapter: Adapter,
    alias: AdapterAlias | None,
    name: str,
    version: AdapterVersion,
) -> AdapterAlias:
    if alias is None:
        alias = AdapterAlias(adapter_id=adapter.id, name=name, tenant_id=adapter.tenant_id)
        repository.add(alias)
    alias.version_id = version.id
    alias.updated_at = now()
    await repository.flush()
    return alias


async def _number_of(repository: RegistryRepository, adapter: Adapter, alias: AdapterAlias) -> int:
    numbers = {row.name: number for row, number in await repository.list_aliases(adapter)}
    return numbers[alias.name]


async def _check_expected(
    repository: RegistryRepository,
    adapter: Adapter,
    name: str,
    alias: AdapterAlias | None,
    expected: Expected,
) -> None:
    if expected == "any":
        return
    found = None if alias is None else await _number_of(repository, adapter, alias)
    if found != expected:
        is_at = "does not exist" if found is None else f"is at version {found}"
        wanted = "that it did not exist" if expected is None else f"version {expected}"
        raise ConflictError(
            f"The alias '{name}' of '{adapter.name}' {is_at}; you expected {wanted}.",
            param="expected_version",
        )
