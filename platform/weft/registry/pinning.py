"""Keeps the engine's pins to what the tenants have asked for, which is in the table of versions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from weft.db.database import Database
from weft.registry.maintenance_repository import MaintenanceRepository


class Pins:
    """`pin` tells the engine. A version that two tenants have is pinned while either wants it."""

    def __init__(
        self,
        database: Database,
        base_digest: str,
        pin: Callable[[Collection[str]], Awaitable[None]],
    ) -> None:
        self._database, self._base_digest, self._pin = database, base_digest, pin
        self._lock = asyncio.Lock()  # what was read last is told last

    async def reconcile(self) -> None:
        """Idempotent; after each change, and at start."""
        async with self._lock:
            async with self._database.reading() as session:
                wanted = await MaintenanceRepository(session).list_pinned(self._base_digest)
            await self._pin(wanted)
