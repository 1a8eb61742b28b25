"""A database of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from weft.db.database import Database
from weft.db.urls import sqlite_url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a table."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path / "weft.db")
        return
    postgres = request.getfixturevalue("postgres")
    url = postgres.create(is_empty=True)
    yield url
    postgres.drop(url)
