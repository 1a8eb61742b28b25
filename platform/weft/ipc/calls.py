"""Questions of one side of a connection that wait for the other side's answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from weft.ipc.frames import Message


class Calls:
    """Numbers questions and hands each its answer. Used by one event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Message]] = {}

    def next_number(self) -> int:
        """Of a question whose answer nobody waits for."""
        return next(self._numbers)

    async def ask(
        self, create: Callable[[int], Message], send: Callable[[Message], None]
    ) -> Message:
        """Send what `create` makes of a number, and wait for the answer; raises what `fail_all` is
        told where none comes."""
        number = self.next_number()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            send(create(number))
            return await answer
        finally:
            del self._waiting[number]

    def answered(self, number: int, message: Message) -> None:
        """Whoever was cancelled meanwhile hears of none."""
        answer = self._waiting.get(number)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def fail_all(self, error: Exception) -> None:
        """Nothing more comes: all that wait raise `error`."""
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
