"""Delivers messages to their sinks at least once, from several processes at once.

A message is claimed for a while, delivered outside of any transaction, and marked. Whoever dies in
between leaves a claim that runs out, and the message is delivered again with the same id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.usage.metrics import MeteringCounts
from weft.usage.models import OutboxMessage
from weft.usage.outbox_repository import OutboxRepository
from weft.usage.sinks import Message, Sink, SinkError

logger = logging.getLogger("weft.usage")

BATCH_SIZE = 100
# longer than a sink may take
CLAIM_S = 90.0
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 600.0
KEEP_DELIVERED_S = 7 * 24 * 3600.0
_MAX_DELETED = 1000


class Dispatcher:
    """Brings each sink its messages."""

    def __init__(
        self, database: Database, sinks: Mapping[str, Sink], counts: MeteringCounts | None = None
    ) -> None:
        self._database, self._sinks = database, sinks
        self.counts = counts or MeteringCounts()

    async def deliver_due(self) -> int:
        """All messages that are due; returns how many were delivered. A sink that fails holds up
        its own messages only."""
        return sum([await self._deliver_to(name, sink) for name, sink in self._sinks.items()])

    async def _deliver_to(self, name: str, sink: Sink) -> int:
        num_delivered = 0
        while rows := await self._claim(name):
            if not await self._deliver(name, sink, rows):
                break
            num_delivered += len(rows)
        return num_delivered

    async def _claim(self, name: str) -> Sequence[OutboxMessage]:
        return await self._database.write(
            lambda session: OutboxRepository(session).claim(name, BATCH_SIZE, round(CLAIM_S * 1000))
        )

    async def _deliver(self, name: str, sink: Sink, rows: Sequence[OutboxMessage]) -> bool:
        ids = [row.id for row in rows]
        messages = [Message(row.id, row.kind, row.tenant_id, row.payload) for row in rows]
        try:
            await sink.deliver(messages)
        except SinkError as error:
            num_attempts = max(row.num_attempts for row in rows)
            delay_s = min(FIRST_RETRY_S * 2.0 ** min(num_attempts, 20), LAST_RETRY_S)
            logger.warning("sink %s: %s; tried again in %.0f s", name, error, delay_s)
            self.counts.num_failures += 1
            await self._database.write(
                lambda session: OutboxRepository(session).postpone(name, ids, round(delay_s * 1000))
            )
            return False
        await self._database.write(
            lambda session: OutboxRepository(session).mark_delivered(name, ids)
        )
        self.counts.num_delivered += len(ids)
        return True

    async def delete_old(self) -> int:
        """Forget messages that were delivered a while ago."""

        async def job(session: AsyncSession) -> int:
            repository = OutboxRepository(session)
            return await repository.delete_delivered(round(KEEP_DELIVERED_S * 1000), _MAX_DELETED)

        num_deleted = 0
        while num := await self._database.write(job):
            num_deleted += num
        return num_deleted

    async def close(self) -> None:
        for sink in self._sinks.values():
            await sink.close()
