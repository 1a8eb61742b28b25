"""At start: what a crash left half-done is ended or taken up again. One process may do so.

What is left then are temporary folders, which the intake sweeps, and files of versions that were
never ready, which the next purge removes.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from weft.db.database import Database
from weft.registry.intake import sweep_uploads
from weft.registry.lifecycle import reject
from weft.registry.maintenance_repository import MaintenanceRepository
from weft.registry.models import AdapterVersion, VersionState
from weft_adapters.faults import Fault
from weft_adapters.validation import ValidationReport

logger = logging.getLogger("weft.registry")

# an import that ends the process each time must not do so for ever
MAX_ATTEMPTS = 5


async def make_up_for_crash(database: Database, uploads_dir: Path) -> None:
    """Before any process takes requests."""
    await asyncio.to_thread(sweep_uploads, uploads_dir)
    num_rejected = await recover(database)
    if num_rejected:
        logger.warning("%d uploads were interrupted by a crash", num_rejected)


async def recover(database: Database) -> int:
    """Reject what came with a request that is gone; imports begin anew. Returns how many were
    rejected."""
    async with database.writing() as session:
        left = await MaintenanceRepository(session).list_pending()
        return sum([_recover(version) for version in left])


async def recover_imports(database: Database) -> int:
    """Of a process that is gone, while others go on. Returns how many were given up."""
    async with database.writing() as session:
        left = await MaintenanceRepository(session).list_pending()
        return sum([_recover(version) for version in left if _is_import(version)])


def _is_import(version: AdapterVersion) -> bool:
    return version.source.get("type") not in ("multipart", "merge")


def _recover(version: AdapterVersion) -> bool:
    if _is_import(version) and version.num_attempts + 1 < MAX_ATTEMPTS:
        version.state = VersionState.UPLOADING
        version.num_attempts += 1
        return False
    fault = Fault(
        "interrupted", "The server stopped before the version was ready; upload it again."
    )
    reject(version, ValidationReport(ok=False, faults=(fault,)))
    return True
