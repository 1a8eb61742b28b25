"""How endpoints get a session. `WriteSession` commits before the response is sent.

Here and elsewhere a dependency is a coroutine even where it awaits nothing: FastAPI calls any other
function in a thread, which costs a request more than all that it has to do here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Protocol

from fastapi import Depends, Query, Request
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.paging import PageRequest


async def get_database(request: Request) -> Database:
    """The app's database."""
    database: Database = request.app.state.database
    return database


DatabaseDep = Annotated[Database, Depends(get_database)]


async def _reading(database: DatabaseDep) -> AsyncIterator[AsyncSession]:
    async with database.reading() as session:
        yield session


class KeyedRequest(Protocol):
    """A request with an `Idempotency-Key`, as `weft.idempotency` leaves it in the state."""

    async def enter(self, session: AsyncSession) -> None:
        """Before the route does anything in the transaction, in which its answer is kept."""


async def _writing(request: Request, database: DatabaseDep) -> AsyncIterator[AsyncSession]:
    keyed: KeyedRequest | None = getattr(request.state, "keyed", None)
    async with database.writing() as session:
        if keyed is not None:
            await keyed.enter(session)
        yield session


ReadSession = Annotated[AsyncSession, Depends(_reading, scope="function")]
WriteSession = Annotated[AsyncSession, Depends(_writing, scope="function")]


async def get_page(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=128)] = None,
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
) -> PageRequest:
    """OpenAI's list parameters."""
    return PageRequest(limit, after, "asc" if order == "asc" else "desc")


PageDep = Annotated[PageRequest, Depends(get_page)]
