"""What can be done with adapters. Each function works in the caller's transaction.

Knows what a base is called and its digest, not the engine that runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.ids import create_id, now
from weft.db.scope import Owner
from weft.errors import (
    ConflictError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFoundError,
    QuotaExceededError,
)
from weft.registry.models import Adapter, AdapterVersion, VersionState
from weft.registry.names import is_adapter_name, try_parse_model_name
from weft.registry.quota import Quota, check_adapters
from weft.registry.repository import RegistryRepository


@dataclass(frozen=True, slots=True)
class ServedBase:
    """The base that this server runs."""

    name: str
    digest: str

    @property
    def resolved(self) -> ResolvedModel:
        """As a request runs it without an adapter."""
        return ResolvedModel(self.name, self.name)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What a request will run, fixed at admission. `name` is immutable: `<adapter>@v3`.

    `merged_from`: of what adapters it was merged, by their immutable names. `vocab_size`: how many
    tokens an adapter has, None for the base's; `has_tokenizer`: it has some of its own.
    """

    name: str
    base_name: str
    adapter_id: str | None = None
    version: int | None = None
    digest: str | None = None
    merged_from: tuple[str, ...] = ()
    vocab_size: int | None = None
    has_tokenizer: bool = False


async def resolve_model(
    session: AsyncSession, owner: Owner, base: ServedBase, model: str
) -> ResolvedModel:
    """ModelNotFoundError, the same for "unknown" and "not yours".

    An adapter may be named behind its base, as SGLang does: `<base>:<adapter>`.
    """
    if model == base.name:
        return base.resolved
    name = try_parse_model_name(model.removeprefix(f"{base.name}:"))
    found = None if name is None else await RegistryRepository(session, owner).resolve(name)
    if found is None:
        raise ModelNotFoundError(model)
    adapter, version = found
    if version.base_digest != base.digest:
        raise InvalidRequestError(
            f"'{adapter.name}@v{version.number}' was uploaded for another base model than the one "
            f"being served; upload it again for '{base.name}'.",
            param="model",
            code="base_mismatch",
        )
    return ResolvedModel(
        f"{adapter.name}@v{version.number}", base.name, adapter.id, version.number, version.digest,
        vocab_size=version.report.get("vocab_size"),
        has_tokenizer=bool(version.report.get("has_tokenizer")),
    )  # fmt: skip


async def create_adapter(
    session: AsyncSession,
    owner: Owner,
    base: ServedBase,
    *,
    name: str,
    base_model: str,
    description: str,
    tags: Mapping[str, str],
    quota: Quota = Quota(),  # noqa: B008 (frozen)
) -> Adapter:
    """An adapter without versions yet."""
    if not is_adapter_name(name) or name == base.name:
        raise InvalidRequestError(
            "An adapter's name is 1 to 63 of a-z, 0-9, '.', '_' and '-', begins with a letter or "
            "digit, has no '..' and is not the base model's name.",
            param="name",
        )
    if base_model != base.name:
        raise InvalidRequestError(
            f"The base model '{base_model}' is not served here; this server has '{base.name}'.",
            param="base_model",
        )
    repository = RegistryRepository(session, owner)
    await check_adapters(repository, quota)
    if await repository.find_adapter(name) is not None:
        raise ConflictError(
            f"An adapter named '{name}' exists already.", param="name", code="adapter_exists"
        )
    adapter = Adapter(
        id=create_id("adp"),
        tenant_id=owner.tenant_id,
        name=name,
        base_model=base_model,
        description=description,
        tags=dict(tags),
        created_at=now(),
        deleted_at=None,
    )
    repository.add(adapter)
    await repository.flush()
    return adapter


async def get_adapter(session: AsyncSession, owner: Owner, name: str) -> Adapter:
    adapter = await RegistryRepository(session, owner).find_adapter(name)
    if adapter is None:
        raise NotFoundError(f"No adapter '{name}' exists or you do not have access to it.")
    return adapter


async def delete_adapter(session: AsyncSession, owner: Owner, name: str) -> Adapter:
    """The name is free again at once; requests in flight finish. Its versions are archived."""
    adapter = await get_adapter(session, owner, name)
    repository = RegistryRepository(session, owner)
    await repository.delete_aliases(adapter)
    adapter.deleted_at = now()
    for version in await repository.list_kept_versions(adapter):
        archive(version)
    return adapter


async def get_version(
    session: AsyncSession, owner: Owner, name: str, number: int
) -> tuple[Adapter, AdapterVersion]:
    """In whatever state it is."""
    adapter = await get_adapter(session, owner, name)
    version = await RegistryRepository(session, owner).find_version(adapter, number)
    if version is None:
        raise NotFoundError(
            f"No version {number} of adapter '{name}' exists or you do not have access to it."
        )
    return adapter, version


async def get_ready_version(
    session: AsyncSession, owner: Owner, name: str, number: int
) -> tuple[Adapter, AdapterVersion]:
    """ConflictError for one that is there but cannot be called."""
    adapter, version = await get_version(session, owner, name, number)
    if version.state != VersionState.READY:
        raise ConflictError(
            f"Version {number} of '{name}' is {version.state}, not ready.", code="version_not_ready"
        )
    return adapter, version


async def delete_version(
    session: AsyncSession, owner: Owner, name: str, number: int
) -> AdapterVersion:
    """ConflictError while an alias points at it; requests in flight finish. Idempotent.

    An import that is not over yet is given up.
    """
    adapter, version = await get_version(session, owner, name, number)
    aliases = await RegistryRepository(session, owner).list_aliases(adapter)
    pointing = [alias.name for alias, _ in aliases if alias.version_id == version.id]
    if pointing:
        raise ConflictError(
            f"Version {number} of '{name}' is in use by the alias '{pointing[0]}'.",
            code="alias_in_use",
        )
    archive(version)
    return version


async def set_pinned(
    session: AsyncSession, owner: Owner, name: str, number: int, is_pinned: bool, quota: Quota
) -> tuple[Adapter, AdapterVersion]:
    """QuotaExceededError for one pin too many. Idempotent."""
    adapter, version = await get_ready_version(session, owner, name, number)
    if is_pinned and not version.is_pinned:
        num_pinned = await RegistryRepository(session, owner).count_pinned()
        if num_pinned >= quota.max_pinned:
            raise QuotaExceededError(
                f"You have {num_pinned} pinned versions, which is as many as you may have."
            )
    version.is_pinned = is_pinned
    return adapter, version


def archive(version: AdapterVersion) -> None:
    """Its files stay for the retention time."""
    if version.archived_at is None:
        version.state = VersionState.ARCHIVED
        version.archived_at = now()
        version.is_pinned = False
