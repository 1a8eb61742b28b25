"""What SQLite and PostgreSQL spell differently, and the clock that all processes share.

Nothing outside of `weft.db` asks which database it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import BigInteger, CursorResult, GenerativeSelect, Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from weft.db.base import Base

SelectT = TypeVar("SelectT", bound=GenerativeSelect)
# rows of one statement: SQLite takes 32,766 values
_MAX_ROWS = 500


class database_now_ms(FunctionElement[int]):
    """The database's clock in Unix milliseconds, in a statement: the same for all processes.

    It goes on within a transaction.
    """

    type = BigInteger()
    inherit_cache = True


@compiles(database_now_ms, "postgresql")
def _postgresql_now_ms(_element: object, _compiler: SQLCompiler, **_options: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


@compiles(database_now_ms, "sqlite")
def _sqlite_now_ms(_element: object, _compiler: SQLCompiler, **_options: object) -> str:
    # days since noon of 24 November 4714 BC; `unixepoch('subsec')` is too new
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


async def db_now_ms(session: AsyncSession) -> int:
    """The database's clock in Unix milliseconds."""
    connection = await session.connection()
    now_ms: int = (await connection.execute(select(database_now_ms()))).scalar_one()
    return now_ms


Insert = postgresql.Insert | sqlite.Insert


def insert_into(session: AsyncSession, model: type[Base]) -> Insert:
    """An INSERT that has `on_conflict_do_nothing` and `on_conflict_do_update`.

    The result's `rowcount` is how many rows were inserted or updated.
    """
    table = cast(Table, model.__table__)
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement: Insert = dialect.insert(table)
    return statement.execution_options(preserve_rowcount=True)


async def insert_or_ignore(
    session: AsyncSession, model: type[Base], rows: Sequence[Mapping[str, object]]
) -> int:
    """Insert rows but those that collide with a key that is there; returns how many are new.

    Keys of a row are names of columns; every row has the same ones.
    """
    num_new = 0
    for first in range(0, len(rows), _MAX_ROWS):
        statement = insert_into(session, model).values(list(rows[first : first + _MAX_ROWS]))
        result = await session.execute(statement.on_conflict_do_nothing())
        num_new += cast("CursorResult[Any]", result).rowcount
    return num_new


def for_update_skip_locked(statement: SelectT) -> SelectT:
    """Lock the rows that are read and pass over those that another transaction has locked.

    On SQLite, where there is one writer at a time, this is `statement` itself.
    """
    return statement.with_for_update(skip_locked=True)


def for_update(statement: SelectT) -> SelectT:
    """Lock the rows that are read until the transaction ends, waiting for whoever has them.

    On SQLite, where there is one writer at a time, this is `statement` itself.
    """
    return statement.with_for_update()
