"""Queries on kept answers."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.dialect import insert_into
from weft.db.scope import unscoped
from weft.idempotency.models import KeptAnswer

_BY_ID = "the id is a keyed hash that holds the caller"
_OLD = "what is over is swept for everybody"


class AnswerRepository:
    """Answers by the hash of caller, route and key."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def find(self, answer_id: str, since: int) -> str | None:
        """The sealed answer, unless it is from before `since`."""
        statement = select(KeptAnswer.sealed).where(
            KeptAnswer.id == answer_id, KeptAnswer.created_at > since
        )
        found: str | None = await self._session.scalar(unscoped(statement, _BY_ID))
        return found

    async def keep(self, answer_id: str, sealed: str, created_at: int) -> None:
        """In the place of one that is over, if there is one."""
        values = {"sealed": sealed, "created_at": created_at}
        statement = insert_into(self._session, KeptAnswer).values(id=answer_id, **values)
        await self._session.execute(
            statement.on_conflict_do_update(index_elements=["id"], set_=values)
        )

    async def delete_before(self, before: int) -> None:
        statement = delete(KeptAnswer).where(KeptAnswer.created_at <= before)
        await self._session.execute(unscoped(statement, _OLD))
