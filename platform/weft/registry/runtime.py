"""What the routes of adapters work with, and its life from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from weft.db.database import Database
from weft.db.leases import create_holder, run_alone
from weft.messages import EngineClient
from weft.registry.fetcher import Fetcher
from weft.registry.imports import Importer
from weft.registry.merging import Merger
from weft.registry.pinning import Pins
from weft.registry.publishing import Publisher
from weft.registry.purging import Purger
from weft.registry.recovery import recover_imports
from weft.registry.smoke_check import SmokeCheck
from weft.registry.uploads import Uploads
from weft.storage.s3 import S3Store

# nobody takes that long to store an adapter
_HALF_UPLOAD_S = 24 * 3600.0
# how often a process that does not work asks whether it is its turn
_TURN_S = 5.0
logger = logging.getLogger("weft.registry")


@dataclass(frozen=True, slots=True)
class Registry:
    """`read_config` gives a version's config by its digest, and blocks. Times are seconds."""

    database: Database
    publisher: Publisher
    merger: Merger
    importer: Importer
    uploads: Uploads
    purger: Purger
    fetcher: Fetcher
    remote_store: S3Store | None
    uploads_dir: pathlib.Path
    max_upload_bytes: int
    retention_s: float
    sweep_interval_s: float
    pins: Pins
    engine: EngineClient
    read_config: Callable[[str], bytes]
    smoke_check: SmokeCheck

    def prefetch(self, digest: str) -> None:
        """Hint the engine that a request is near."""
        self.engine.prefetch_adapter(digest)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sweep and import in the background; what a crash left was made up for before."""
        await self.pins.reconcile()
        work = self._work() if self.database.is_sqlite else self._work_in_turn()
        tasks = [
            asyncio.create_task(work, name="weft-registry"),
            # each process compares what was uploaded to it
            asyncio.create_task(self.smoke_check.run(), name="weft-registry-smoke"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.fetcher.close()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep_for_ever(), name="weft-registry-sweeper")
            group.create_task(self.importer.run(), name="weft-registry-importer")

    async def _work_in_turn(self) -> None:
        """Of the processes on one database one works; when it ends another takes its place."""

        async def work() -> None:
            await recover_imports(self.database)
            await self._work()

        holder = create_holder()
        while True:
            try:
                await run_alone(self.database, "registry", holder, work)
            except Exception:  # the database was away, or the lease was lost with it
                logger.exception("the registry's upkeep has ended; it is begun again")
            await asyncio.sleep(_TURN_S)

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:  # the next one makes up for it
                logger.exception("the sweep of the registry failed")
            await asyncio.sleep(self.sweep_interval_s)

    async def sweep(self) -> None:
        """Remove what nobody can ask for any more."""
        await self.purger.purge(self.retention_s)
        await self.uploads.sweep()
        if self.remote_store is not None:  # what a purge does not know: halves of uploads
            await asyncio.to_thread(self.remote_store.sweep, _HALF_UPLOAD_S)
        await self.pins.reconcile()  # versions were deleted meanwhile


async def get_registry(request: Request) -> Registry:
    """The app's registry."""
    registry: Registry = request.app.state.registry
    return registry


RegistryDep = Annotated[Registry, Depends(get_registry)]
