"""Keeps the engine's pins to what the tenants have asked for, which is in the table of versions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from weft.db.database import Database
from weft.registry.maintenance_repository import MaintenanceRepository


class Pins:
    """`pin` tells the engine. A version that two tenants have is pinned while either wants it."""

    def __init__(
        self, database: Database, base_digest: str, pin: Callable[[str, bool], None]
    ) -> None:
        self._database, self._base_digest, self._pin = database, base_digest, pin
        self._pinned: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()

    async def reconcile(self) -> None:
        """Idempotent; after each change, and at start."""
        async with self._lock:
            async with self._database.reading() as session:
                repository = MaintenanceRepository(session)
                wanted = frozenset(await repository.list_pinned(self._base_digest))
            for digest in sorted(self._pinned - wanted):
                self._pin(digest, False)
            for digest in sorted(wanted - self._pinned):
                self._pin(digest, True)
            self._pinned = wanted
