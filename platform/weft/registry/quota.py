"""How much of the registry one tenant may use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from weft.errors import QuotaExceededError
from weft.registry.repository import RegistryRepository


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may have if the operator has set no limits of its own for it. Versions count
    until they are purged, bytes are their tensors'; `max_imports` are under way at a time,
    `max_uploads` are open at a time."""

    max_adapters: int = 10_000
    max_versions: int = 20_000
    max_stored_bytes: int = 200 * 2**30
    max_imports: int = 16
    max_uploads: int = 16
    max_pinned: int = 1


async def quota_of_tenant(repository: RegistryRepository, quota: Quota) -> Quota:
    """`quota` with the limits that are the tenant's own."""
    limit = await repository.find_tenant_limit()
    if limit is None:
        return quota
    own = {
        "max_adapters": limit.max_adapters,
        "max_versions": limit.max_versions,
        "max_stored_bytes": limit.max_stored_bytes,
    }
    return replace(quota, **{name: value for name, value in own.items() if value is not None})


async def check_adapters(repository: RegistryRepository, quota: Quota) -> None:
    """QuotaExceededError where one more adapter would be too many."""
    quota = await quota_of_tenant(repository, quota)
    if await repository.count_adapters() >= quota.max_adapters:
        raise QuotaExceededError(
            f"You have {quota.max_adapters} adapters or more, which is as many as you may have."
        )


async def check_room(
    repository: RegistryRepository, quota: Quota, num_bytes: int, *, num_versions: int = 1
) -> None:
    """QuotaExceededError where `num_versions` more with `num_bytes` would be too much."""
    quota = await quota_of_tenant(repository, quota)
    found, found_bytes = await repository.count_kept()
    if found + num_versions > quota.max_versions:
        raise QuotaExceededError(
            f"You have {found} versions, which is as many as you may have; those deleted count "
            "until they are purged."
        )
    if found_bytes + num_bytes > quota.max_stored_bytes:
        raise QuotaExceededError(
            f"You have {found_bytes} bytes of adapters and may have {quota.max_stored_bytes}; "
            f"{num_bytes} more are too many. Those deleted count until they are purged."
        )
