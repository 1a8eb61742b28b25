"""The database's URL: which are supported, with which driver, and how it is shown.

`sqlite:///file` or `postgresql://user:password@host/name`; a driver in it is replaced by ours.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_SYNC_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}


def sqlite_url(file: Path) -> str:
    """The URL of a database file."""
    return f"sqlite:///{file.resolve()}"


def database_url(url: str | None, file: Path) -> str:
    """The database that a setting names, or else the data folder's own file."""
    return url or sqlite_url(file)


def async_url(url: str) -> URL:
    """`url` for the server's sessions; ValueError for another kind of database."""
    parsed = _parse(url)
    return parsed.set(drivername=_ASYNC_DRIVERS[parsed.get_backend_name()])


def sync_url(url: str) -> URL:
    """`url` for migrations; ValueError for another kind of database."""
    parsed = _parse(url)
    return parsed.set(drivername=_SYNC_DRIVERS[parsed.get_backend_name()])


def redacted(url: str) -> str:
    """`url` without its password, to be shown."""
    return _parse(url).set(drivername=_parse(url).get_backend_name()).render_as_string()


def _parse(url: str) -> URL:
    # the message must not quote the URL: it may hold a password
    try:
        # libpq's short name, which hosting services hand out
        parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    except ArgumentError:
        raise ValueError(
            "the database's URL cannot be read; it is like postgresql://user:password@host/name"
        ) from None
    if parsed.get_backend_name() not in _ASYNC_DRIVERS:
        raise ValueError(
            f"{parsed.get_backend_name()} is not supported: databases are SQLite and PostgreSQL"
        )
    return parsed
