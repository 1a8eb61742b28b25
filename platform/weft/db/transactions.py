"""Short transactions of prepared statements: what a request waits for. Types only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from weft.db.prepared import Prepared, Row, Values

ResultT = TypeVar("ResultT")


class Answers(Protocol):
    """What was asked of the database and need not be there yet."""

    async def rows(self) -> list[Sequence[Row]]:
        """For each row of values that the statement was asked with, the rows that it found."""


class Transaction(Protocol):
    """One that is open. What is asked and run before an answer is waited for travels together."""

    async def ask(self, statement: Prepared, values: Sequence[Values]) -> Answers:
        """Run the statement once with each of these, for the rows that it finds or returns."""

    async def run(self, statement: Prepared, values: Sequence[Values]) -> None:
        """Run the statement once with each of these. It may fail as late as at the commit."""


class Transactions(Protocol):
    """Of one database. Errors are SQLAlchemy's, as sessions raise them."""

    async def run(self, job: Callable[[Transaction], Awaitable[ResultT]]) -> ResultT:
        """`job` in a transaction of its own, which outlives this process when this returns; undone
        if it raises."""

    async def sync(self) -> None:
        """Return when what was committed before this call outlives the machine's crash."""

    async def close(self) -> None:
        """Give back what is open."""


async def fetch(
    tx: Transaction, statement: Prepared, values: Sequence[Values]
) -> list[Sequence[Row]]:
    """Ask and wait."""
    return await (await tx.ask(statement, values)).rows()
