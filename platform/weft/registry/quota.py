"""How much of the registry one tenant may use."""

from __future__ import annotations

from dataclasses import dataclass

from weft.errors import QuotaExceededError
from weft.registry.repository import RegistryRepository


@dataclass(frozen=True, slots=True)
class Quota:
    """The same for every tenant. Versions count until they are purged, bytes are their tensors';
    `max_imports` are under way at a time, `max_uploads` are open at a time."""

    max_adapters: int = 10_000
    max_versions: int = 20_000
    max_stored_bytes: int = 200 * 2**30
    max_imports: int = 16
    max_uploads: int = 16
    max_pinned: int = 1


async def check_room(
    repository: RegistryRepository, quota: Quota, num_bytes: int, *, num_versions: int = 1
) -> None:
    """QuotaExceededError where `num_versions` more with `num_bytes` would be too much."""
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
