"""Named jobs that one process does at a time: a sweeper, a reaper, a dispatcher.

A lease is a row with its holder and its end by the database's clock, so that no two processes'
clocks are compared. Whoever dies loses it by time. A lease keeps work from being done twice for
nothing; where twice would be wrong, the work itself has to be safe to repeat: a process that was
halted for a while goes on without knowing that its lease is over.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

from sqlalchemy import CursorResult, delete, or_
from sqlalchemy.ext.asyncio import AsyncSession

from weft.db.database import Database
from weft.db.dialect import database_now_ms, insert_into
from weft.db.errors import DatabaseUnavailableError
from weft.db.models import Lease
from weft.db.scope import unscoped

ResultT = TypeVar("ResultT")
_REASON = "leases are the processes' own"


class LeaseLostError(Exception):
    """Another process has the job now, or the database could not be asked in time."""


def create_holder() -> str:
    """A name for this process that no other one has: machine, process, random."""
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(8)}"


async def take(database: Database, name: str, holder: str, duration_s: float) -> bool:
    """Take or renew the lease for `duration_s` from now; False while another holds it."""

    async def job(session: AsyncSession) -> bool:
        expires_at_ms = database_now_ms() + round(duration_s * 1000)
        statement = insert_into(session, Lease).values(
            name=name, holder=holder, expires_at_ms=expires_at_ms
        )
        statement = statement.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": holder, "expires_at_ms": expires_at_ms},
            where=or_(Lease.holder == holder, Lease.expires_at_ms <= database_now_ms()),
        )
        result = await session.execute(statement)
        return cast("CursorResult[Any]", result).rowcount == 1

    return await database.write(job)


async def give_up(database: Database, name: str, holder: str) -> None:
    """Let another process have the lease at once; nothing if it is not `holder`'s."""
    statement = delete(Lease).where(Lease.name == name, Lease.holder == holder)

    async def job(session: AsyncSession) -> None:
        await session.execute(unscoped(statement, _REASON))

    await database.write(job)


async def run_alone(
    database: Database,
    name: str,
    holder: str,
    work: Callable[[], Awaitable[ResultT]],
    *,
    duration_s: float = 30.0,
) -> ResultT | None:
    """Do `work` under the lease, renewed while it runs; None if another process holds it.

    LeaseLostError, and the work is cancelled, where the lease could not be renewed before its end.
    The lease is given up when the work is over.
    """
    if not await take(database, name, holder, duration_s):
        return None
    working = asyncio.ensure_future(work())
    renewing = asyncio.create_task(_renew(database, name, holder, duration_s))
    try:
        await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise LeaseLostError(f"the lease {name!r} was lost") from renewing.exception()
        return working.result()
    finally:
        for task in (working, renewing):
            task.cancel()
        await asyncio.gather(working, renewing, return_exceptions=True)
        with suppress(DatabaseUnavailableError):  # then it ends by time
            await give_up(database, name, holder)


@asynccontextmanager
async def holding(
    database: Database, name: str, holder: str, *, duration_s: float
) -> AsyncIterator[bool]:
    """Whether `holder` has the lease, which is renewed meanwhile and given up at the end.

    Unlike under `run_alone`, what is done meanwhile goes on if the lease is lost.
    """
    if not await take(database, name, holder, duration_s):
        yield False
        return
    renewing = asyncio.create_task(_renew(database, name, holder, duration_s))
    try:
        yield True
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        with suppress(DatabaseUnavailableError):  # then it ends by time
            await give_up(database, name, holder)


async def _renew(database: Database, name: str, holder: str, duration_s: float) -> None:
    """Returns when the lease is lost."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + duration_s
    while loop.time() < ends_at:
        await asyncio.sleep(duration_s / 4)
        began_at = loop.time()
        try:
            async with asyncio.timeout_at(ends_at):
                if not await take(database, name, holder, duration_s):
                    return
        except (DatabaseUnavailableError, TimeoutError):
            continue
        ends_at = began_at + duration_s
