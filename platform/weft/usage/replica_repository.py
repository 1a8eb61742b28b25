"""Queries on replicas and on the requests that they left."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dialect import database_now_ms, insert_into
from weft.db.scope import unscoped
from weft.usage.models import Replica, UsagePending

_REASON = "a replica meters the requests of all tenants"


class ReplicaRepository:
    """Rows of one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, replica: Replica) -> None:
        self._session.add(replica)

    async def list_all(self) -> Sequence[Replica]:
        statement = select(Replica).order_by(Replica.started_at_ms, Replica.id)
        return (await self._session.scalars(unscoped(statement, _REASON))).all()

    async def beat(self, replica_id: str) -> bool:
        statement = (
            update(Replica)
            .where(Replica.id == replica_id, Replica.closed_at_ms.is_(None))
            .values(heartbeat_at_ms=database_now_ms())
            .returning(Replica.id)
            .execution_options(synchronize_session=False)
        )
        return await self._session.scalar(unscoped(statement, _REASON)) is not None

    async def note_counts(
        self, engine_id: str, at_ms: int, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Of an engine, which several processes may tell of: the newest stays."""
        new = {
            "heartbeat_at_ms": database_now_ms(),
            "closed_at_ms": None,
            "checkpoint_at_ms": at_ms,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }
        first = {"id": engine_id, "kind": "engine", "started_at_ms": at_ms}
        statement = insert_into(self._session, Replica).values(
            **first, last_seq=0, rolled_up_seq=0, **new
        )
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_=new, where=Replica.checkpoint_at_ms <= at_ms
        )
        await self._session.execute(unscoped(statement, _REASON))

    async def close(self, replica_id: str) -> None:
        await self._close(Replica.id == replica_id)

    async def close_silent(self, after_ms: int) -> None:
        await self._close(Replica.heartbeat_at_ms <= database_now_ms() - after_ms)

    async def _close(self, condition: ColumnElement[bool]) -> None:
        statement = (
            update(Replica)
            .where(condition, Replica.closed_at_ms.is_(None))
            .values(closed_at_ms=database_now_ms())
            .execution_options(synchronize_session=False)
        )
        await self._session.execute(unscoped(statement, _REASON))

    async def take_left(self, max_rows: int) -> Sequence[UsagePending]:
        """Remove unfinished requests of closed replicas, and give them to the caller's hands."""
        statement = (
            select(UsagePending.event_id)
            .join(Replica, Replica.id == UsagePending.replica_id)
            .where(Replica.closed_at_ms.is_not(None))
            .limit(max_rows)
        )
        ids = (await self._session.scalars(unscoped(statement, _REASON))).all()
        return await self.take_all(ids)

    async def list_pending_ids(self, replica_id: str) -> Sequence[str]:
        statement = select(UsagePending.event_id).where(UsagePending.replica_id == replica_id)
        return (await self._session.scalars(unscoped(statement, _REASON))).all()

    async def take_all(self, event_ids: Sequence[str]) -> Sequence[UsagePending]:
        """Remove pending rows; those that are still there are the caller's to settle."""
        if not event_ids:
            return []
        statement = (
            delete(UsagePending)
            .where(UsagePending.event_id.in_(event_ids))
            .returning(UsagePending)
            .execution_options(synchronize_session=False)
        )
        return (await self._session.scalars(unscoped(statement, _REASON))).all()
