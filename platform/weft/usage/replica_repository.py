"""Queries on replicas and on the requests that they left."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dialect import database_now_ms, insert_into
from weft.db.prepared import Prepared
from weft.db.scope import unscoped
from weft.db.transactions import Transaction, fetch
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


_LEFT = Prepared(
    unscoped(
        select(UsagePending.event_id)
        .join(Replica, Replica.id == UsagePending.replica_id)
        .where(Replica.closed_at_ms.is_not(None))
        .limit(bindparam("max_rows")),
        _REASON,
    )
)
_PENDING = Prepared(
    unscoped(
        select(UsagePending.event_id).where(UsagePending.replica_id == bindparam("replica_id")),
        _REASON,
    )
)


async def list_left(tx: Transaction, max_rows: int) -> list[str]:
    """Unfinished requests of closed replicas."""
    (rows,) = await fetch(tx, _LEFT, [{"max_rows": max_rows}])
    return [event_id for (event_id,) in rows]


async def list_pending_ids(tx: Transaction, replica_id: str) -> list[str]:
    (rows,) = await fetch(tx, _PENDING, [{"replica_id": replica_id}])
    return [event_id for (event_id,) in rows]
