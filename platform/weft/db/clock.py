"""The database's clock within a transaction of prepared statements."""

from __future__ import annotations

from sqlalchemy import select

from weft.db.dialect import database_now_ms
from weft.db.prepared import Prepared
from weft.db.scope import unscoped
from weft.db.transactions import Answers, Transaction

_NOW = Prepared(unscoped(select(database_now_ms()), "the time is everybody's"))


async def ask(tx: Transaction) -> Answers:
    """For `read`."""
    return await tx.ask(_NOW, [{}])


async def read(answers: Answers) -> int:
    """Unix milliseconds, when the database came to the question."""
    (((now_ms,),),) = await answers.rows()
    return int(now_ms)
