"""Remembers in the background when sessions were used, and deletes what has ended: sessions,
attempts, resets, and the answers that were kept for keys of requests.

A request that only reads does not wait for a write; what a crash loses is at most `FLUSH_S` of
use, by which a session may end that much earlier.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from weft.db.database import Database
from weft.db.ids import now
from weft.idempotency.claims import KEPT_S
from weft.idempotency.repository import AnswerRepository
from weft.tenancy.session_repository import SessionRepository
from weft.tenancy.sessions import SessionPolicy, SignedIn
from weft.tenancy.user_repository import UserRepository

FLUSH_S = 15
_SWEEP_S = 600
# a session's time of last use is this coarse: not every request is a write
_GRAIN_S = 30
_MAX_SEEN = 10_000

logger = logging.getLogger("weft.tenancy")


class SessionUpkeep:
    """Of one worker; several beside each other do no harm."""

    def __init__(self, database: Database, policy: SessionPolicy) -> None:
        self._database = database
        self._policy = policy
        self._seen: dict[str, int] = {}

    def saw(self, who: SignedIn) -> None:
        """The session was used now."""
        if now() - who.last_seen_at >= _GRAIN_S and len(self._seen) < _MAX_SEEN:
            self._seen[who.secret_hash] = now()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """At work; what was seen is written at the end as well."""
        task = asyncio.create_task(self._run(), name="weft-session-upkeep")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.flush()

    async def _run(self) -> None:
        swept_at = 0
        while True:
            try:
                await self.flush()
                if now() - swept_at >= _SWEEP_S:
                    await self.sweep()
                    swept_at = now()
            except Exception:  # the next one makes up for it
                logger.exception("the upkeep of sessions failed")
            await asyncio.sleep(FLUSH_S)

    async def flush(self) -> None:
        """Write down which sessions were used."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        try:
            async with self._database.writing() as session:
                await SessionRepository(session).touch(seen)
        except Exception:
            self._seen = {**seen, **self._seen}
            raise

    async def sweep(self) -> None:
        """Delete sessions, attempts, resets and kept answers that have ended."""
        time_s = now()
        async with self._database.writing() as session:
            await SessionRepository(session).delete_expired(time_s, time_s - self._policy.idle_s)
            await UserRepository(session).delete_expired(time_s)
            await AnswerRepository(session).delete_before(time_s - KEPT_S)
