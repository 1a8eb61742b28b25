"""Finds out that PostgreSQL hangs, and cuts off those who wait for it.

A server that hangs keeps its connections open and acknowledges what is sent: nothing but a clock of
our own ends the wait for its answer. A statement may take its time where the server answers others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any, TypeVar

from psycopg import AsyncConnection, Error, OperationalError
from psycopg.abc import PQGen

logger = logging.getLogger("weft.db")

# an answer that takes this long has the server asked whether it answers anybody
PATIENCE_S = 3.0
# for an answer to that
ANSWER_S = 5.0
# the longest that anything may take: PostgreSQL itself ends a statement before
MAX_WAIT_S = 40.0

ResultT = TypeVar("ResultT")


class HangWatch:
    """Makes connections to one server, and judges those that wait long. Of one event loop."""

    def __init__(self) -> None:
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        self._asking: asyncio.Task[bool] | None = None
        self._judging: set[asyncio.Task[None]] = set()

    async def connect(self, *args: Any, **kwargs: Any) -> AsyncConnection[Any]:
        """As `psycopg.AsyncConnection.connect`."""
        self._arguments = args, kwargs
        connection = await WatchedConnection.connect(*args, **kwargs)
        connection.watch = self
        return connection

    def suspect(self, connection: WatchedConnection, started_s: float) -> None:
        """The connection has waited since `started_s`."""
        task = asyncio.create_task(self._judge(connection, started_s), name="weft-hang-watch")
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)

    async def _judge(self, connection: WatchedConnection, started_s: float) -> None:
        while connection.started_s == started_s:
            waited_s = asyncio.get_running_loop().time() - started_s
            if waited_s >= MAX_WAIT_S or not await self._answers():
                # its answer may have come while the server was asked
                if connection.started_s == started_s:
                    logger.error("PostgreSQL has not answered for %.0f s", waited_s)
                    connection.cut_off()
                return
            await asyncio.sleep(PATIENCE_S)

    async def _answers(self) -> bool:
        """Whether the server does; it is asked once for all that wait."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, _task: asyncio.Task[bool]) -> None:
        self._asking = None

    async def _ask(self) -> bool:
        args, kwargs = self._arguments
        try:
            async with asyncio.timeout(ANSWER_S):
                connection = await AsyncConnection.connect(*args, **kwargs)
        except TimeoutError:
            return False
        except OperationalError as error:
            return error.sqlstate is not None  # it has refused us, and so it answers
        except Error:
            return False
        await connection.close()
        return True


class WatchedConnection(AsyncConnection[Any]):
    """A connection whose waits are timed. `started_s`: when the present one began."""

    watch: HangWatch | None = None
    started_s: float | None = None

    async def wait(self, gen: PQGen[ResultT], *args: Any, **kwargs: Any) -> ResultT:
        loop = asyncio.get_running_loop()
        self.started_s = loop.time()
        timer = loop.call_later(PATIENCE_S, self._suspect)
        try:
            return await super().wait(gen, *args, **kwargs)
        finally:
            timer.cancel()
            self.started_s = None

    def _suspect(self) -> None:
        if self.watch is not None and self.started_s is not None:
            self.watch.suspect(self, self.started_s)

    def cut_off(self) -> None:
        """Whoever waits finds the connection lost, as if the server had closed it."""
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as ours:
            ours.shutdown(socket.SHUT_RDWR)
