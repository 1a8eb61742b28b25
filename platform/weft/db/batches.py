"""Work of the same kind that waits is done together, in one transaction with one statement each.

The busier the database, the more share a transaction, a wait for the disk and its round trips.
Knows items and results, no tables.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from weft.db.errors import DatabaseUnavailableError
from weft.db.group_commit import DatabaseClosedError
from weft.db.transactions import Transaction

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Work = Callable[[Transaction, Sequence[ItemT]], Awaitable[Sequence[ResultT | Exception]]]
Run = Callable[
    [Callable[[Transaction], Awaitable[Sequence[ResultT | Exception]]]],
    Awaitable[Sequence[ResultT | Exception]],
]
# others wait for the lock meanwhile
MAX_ITEMS = 64


@dataclass(eq=False, slots=True)
class _Waiting(Generic[ItemT, ResultT]):
    item: ItemT
    done: asyncio.Future[ResultT]

    def resolve(self, result: ResultT | Exception) -> None:
        if self.done.done():
            return  # it does not wait any more
        if isinstance(result, Exception):
            self.done.set_exception(result)
        else:
            self.done.set_result(result)


class Batches(Generic[ItemT, ResultT]):
    """Items of one event loop, for `work` in a transaction of `run`, one after another.

    `work` gives for each item its result or why there is none; such an item must have changed
    nothing. If it raises, the transaction is undone and each item is worked on alone.
    """

    def __init__(self, run: Run[ResultT], work: Work[ItemT, ResultT]) -> None:
        self._run_in_transaction, self._work = run, work
        self._waiting: deque[_Waiting[ItemT, ResultT]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def run(self, item: ItemT) -> ResultT:
        """The item's result, once it is committed. Who is cancelled does not know whether it is."""
        if self._is_closed:
            raise DatabaseClosedError
        waiting = _Waiting[ItemT, ResultT](item, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run_all(), name="weft-batches")
        return await waiting.done

    async def close(self) -> None:
        """Do what waits, take no more."""
        self._is_closed = True
        if self._task is not None:
            await self._task

    async def _run_all(self) -> None:
        """Ends when nothing waits."""
        batch: list[_Waiting[ItemT, ResultT]] = []
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_ITEMS))]
                await self._run_batch([each for each in batch if not each.done.done()])
        finally:
            self._task = None
            for each in batch:  # where this task was cancelled
                each.done.cancel()

    async def _run_batch(self, batch: Sequence[_Waiting[ItemT, ResultT]]) -> None:
        if not batch:
            return
        items = [each.item for each in batch]
        try:
            results = await self._run_in_transaction(lambda tx: self._work(tx, items))
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, DatabaseUnavailableError):
                for each in batch:
                    await self._run_batch([each])
                return
            results = [error] * len(batch)
        for each, result in zip(batch, results, strict=True):
            each.resolve(result)
