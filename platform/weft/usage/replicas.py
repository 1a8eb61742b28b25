"""The processes that meter, and what becomes of the requests of those that are gone.

A process says that it lives by its heartbeat, in the database's clock. What one that is silent or
closed has left unfinished is `lost`: it is recorded, costs nothing, and its holds are given back.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.dialect import db_now_ms
from weft.db.transactions import Transaction
from weft.messages import EngineClient
from weft.usage import replica_repository, repository
from weft.usage.models import Replica, ReplicaKind
from weft.usage.replica_repository import ReplicaRepository
from weft.usage.settling import Ending, Settler

# of one transaction, so that others come between
_MAX_ROWS = 50


class Replicas:
    """All replicas of a database."""

    def __init__(self, database: Database, settler: Settler) -> None:
        self._database, self._settler = database, settler

    async def open(self, replica_id: str, kind: ReplicaKind = "server") -> None:
        async def job(session: AsyncSession) -> None:
            now_ms = await db_now_ms(session)
            ReplicaRepository(session).add(
                Replica(
                    id=replica_id,
                    kind=kind,
                    started_at_ms=now_ms,
                    heartbeat_at_ms=now_ms,
                    last_seq=0,
                    rolled_up_seq=0,
                    prompt_tokens=0,
                    completion_tokens=0,
                )
            )

        await self._database.write(job)

    async def beat(self, replica_id: str) -> bool:
        """False for one that is closed, or was taken for dead."""
        return await self._database.write(
            lambda session: ReplicaRepository(session).beat(replica_id)
        )

    async def close(self, replica_id: str) -> None:
        await self._database.write(lambda session: ReplicaRepository(session).close(replica_id))

    async def checkpoint(self, engine: EngineClient) -> None:
        """Record what the engine has counted. The time is from before its counts are asked for, so
        that whatever was recorded by then is in them."""
        async with self._database.reading() as session:
            at_ms = await db_now_ms(session)
        engine_id, stats = engine.info.engine_id, await engine.stats()
        if engine.info.engine_id != engine_id:
            return  # another one has answered

        async def job(session: AsyncSession) -> None:
            await ReplicaRepository(session).note_counts(
                engine_id, at_ms, stats.num_prompt_tokens, stats.num_generation_tokens
            )

        await self._database.write(job)

    async def lose_all(self) -> int:
        """Close all replicas, and record what they left; for a process that is alone."""
        return await self.lose_silent(0.0)

    async def lose_silent(self, after_s: float) -> int:
        """Close replicas that were silent for `after_s`; record what those that are closed have
        left. Returns how many requests were lost. Safe in several processes at once."""
        await self._database.write(
            lambda session: ReplicaRepository(session).close_silent(round(after_s * 1000))
        )
        num_lost = 0
        while num := await self._database.transact(self._lose_some):
            num_lost += num
        return num_lost

    async def _lose_some(self, tx: Transaction) -> int:
        ids = await replica_repository.list_left(tx, _MAX_ROWS)
        left = await repository.take_pending_of_any(tx, ids)
        await self._settler.settle(tx, [Ending.lost(pending) for pending in left])
        return len(left)

    async def release_all_but(self, replica_id: str, open_ids: Collection[str]) -> int:
        """Give back what the replica holds for requests that are not among `open_ids`, a live set:
        of those, it never told anybody that they had begun."""

        async def job(tx: Transaction) -> int:
            held = await replica_repository.list_pending_ids(tx, replica_id)
            # asked of the set after the rows were read: what has begun by then is in it
            orphans = [event_id for event_id in held if event_id not in open_ids]
            taken = await repository.take_pending_of_any(tx, orphans[:_MAX_ROWS])
            await self._settler.release(tx, taken)
            return len(orphans)

        return await self._database.transact(job)
