"""Queries on usage."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dialect import database_now_ms
from weft.db.scope import Owner, scoped, unscoped
from weft.usage.models import OutboxMessage, Replica, UsageEvent, UsagePending


class UsageRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, *rows: OutboxMessage | UsageEvent | UsagePending) -> None:
        self._session.add_all(rows)

    async def take_pending(self, event_ids: Sequence[str], owner: Owner) -> Sequence[UsagePending]:
        """Remove pending rows; those that are still there are the caller's to settle."""
        statement = (
            delete(UsagePending)
            .where(UsagePending.event_id.in_(event_ids))
            .returning(UsagePending)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(scoped(statement, owner))).all()

    async def take_seq(self, replica_id: str) -> tuple[int, int]:
        """The next number of the replica's events, and the time in ms.

        The replica's row stays locked until the commit, so that numbers are committed in order.
        """
        statement = (
            update(Replica)
            .where(Replica.id == replica_id)
            .values(last_seq=Replica.last_seq + 1)
            .returning(Replica.last_seq, database_now_ms())
            .execution_options(synchronize_session=False)
        )
        reason = "a replica numbers the events of all tenants"
        replica_seq, now_ms = (await self._session.execute(unscoped(statement, reason))).one()
        return replica_seq, now_ms
