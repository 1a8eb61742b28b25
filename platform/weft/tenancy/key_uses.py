"""When keys were last used: gathered in memory, written once a minute for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.errors import DatabaseUnavailableError
from weft.db.ids import now
from weft.tenancy.key_repository import AnyKey, KeyRepository
from weft.tenancy.keys import KeyKind, KeyText
from weft.tenancy.models import AdminKey, ApiKey, OperatorKey

logger = logging.getLogger("weft.tenancy")

FLUSH_INTERVAL_S = 60.0
# of one statement
_MAX_IDS = 500
_TABLES: Mapping[KeyKind, type[AnyKey]] = MappingProxyType(
    {"live": ApiKey, "admin": AdminKey, "operator": OperatorKey}
)


class KeyUses:
    """The uses of one worker's keys since the last flush. Bounded by how many keys there are."""

    def __init__(self, database: Database, interval_s: float = FLUSH_INTERVAL_S) -> None:
        self._database = database
        self._interval_s = interval_s
        # Unix seconds by kind and id
        self._last: dict[tuple[KeyKind, str], int] = {}

    def note(self, key: KeyText) -> None:
        """This key was used now."""
        self._last[key.kind, key.key_id] = now()

    async def flush(self) -> None:
        """Write what was gathered; it is kept for the next time if the database is away."""
        last, self._last = self._last, {}
        if not last:
            return
        # those of one minute together: few statements, and nobody needs it closer
        by_minute: defaultdict[tuple[KeyKind, int], list[str]] = defaultdict(list)
        for (kind, key_id), time_s in last.items():
            by_minute[kind, time_s // 60].append(key_id)

        async def job(session: AsyncSession) -> None:
            repository = KeyRepository(session)
            for (kind, _minute), ids in by_minute.items():
                used_at = max(last[kind, key_id] for key_id in ids)
                for i in range(0, len(ids), _MAX_IDS):
                    await repository.note_use(_TABLES[kind], ids[i : i + _MAX_IDS], used_at)

        try:
            await self._database.write(job)
        except DatabaseUnavailableError:
            self._last = last | self._last
            logger.warning("the uses of %d keys could not be written yet", len(last))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Flush from time to time, and at the end."""
        task = asyncio.create_task(self._flush_forever(), name="weft-key-uses")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await self.flush()

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.flush()
            except Exception:
                logger.exception("the uses of keys could not be written")
