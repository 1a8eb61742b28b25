"""What callers see of a database that cannot be reached, or cannot hold what they sent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from weft.errors import InvalidRequestError, OverloadedError

RETRY_AFTER_S = 2
# of PostgreSQL: connection exceptions, insufficient resources, operator intervention (which has
# shutting down, starting up, and a statement that was not over in time), a lock not free in time
_UNAVAILABLE = ("08", "53", "57", "55P03")
_SQLITE_BUSY = 5
# a transaction that has to be run again: serialization failure, deadlock
_RETRY_STATES = ("40001", "40P01")


class DatabaseUnavailableError(OverloadedError):
    """The database cannot be reached or is too busy; what was asked for may be tried again."""

    def __init__(self) -> None:
        super().__init__(
            "The database cannot be reached at the moment. Please try again.",
            retry_after_s=RETRY_AFTER_S,
            code="database_unavailable",
        )


def is_unavailable(error: BaseException) -> bool:
    """Whether `error` says that the database is away or busy, not that a statement is wrong."""
    if isinstance(error, PoolTimeoutError):
        return True  # no connection of the pool became free
    if not isinstance(error, DBAPIError) or error.orig is None:
        return False
    if error.connection_invalidated:
        return True
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # its low byte is the primary code
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF == _SQLITE_BUSY
    state = _sqlstate(error)
    # a connection that was refused or lost has no state
    return isinstance(error, OperationalError) if state is None else state.startswith(_UNAVAILABLE)


def may_succeed_again(error: BaseException) -> bool:
    """Whether the transaction lost against another one and should be run once more."""
    return isinstance(error, DBAPIError) and _sqlstate(error) in _RETRY_STATES


class TextRefusedError(InvalidRequestError):
    """Text with the character NUL, which PostgreSQL has none of: no row can be meant by it."""

    def __init__(self) -> None:
        super().__init__("Text must not contain the character NUL.")


@contextmanager
def translated_errors() -> Iterator[None]:
    """DatabaseUnavailableError instead of the driver's many ways to say it; TextRefusedError."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        if is_unavailable(error):
            raise DatabaseUnavailableError from error
        if isinstance(error, DataError) and "NUL (0x00)" in str(error.orig):
            raise TextRefusedError from error
        raise


def _sqlstate(error: DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state
