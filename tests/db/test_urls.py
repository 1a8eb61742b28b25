"""Which databases are supported, and that a password is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.db.database import Database
from weft.db.urls import async_url, database_url, redacted, sync_url
from weft.settings import ServerSettings

SECRET = "not-for-your-eyes"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_postgresql_is_spoken_to_by_one_driver(scheme: str) -> None:
    url = f"{scheme}://weft:{SECRET}@db.example:5433/weft?sslmode=require"
    for parsed in (async_url(url), sync_url(url)):
        assert parsed.drivername == "postgresql+psycopg"
        assert (parsed.host, parsed.port, parsed.password) == ("db.example", 5433, SECRET)
        assert parsed.query["sslmode"] == "require"


def test_a_data_folder_has_a_database_of_its_own(tmp_path: Path) -> None:
    url = database_url(None, tmp_path / "weft.db")
    assert async_url(url).drivername == "sqlite+aiosqlite"
    assert sync_url(url).database == str(tmp_path / "weft.db")
    assert database_url("postgresql://db/weft", tmp_path / "weft.db") == "postgresql://db/weft"


@pytest.mark.parametrize("url", [f"mysql://weft:{SECRET}@db/weft", f"weft:{SECRET}@db", ""])
def test_another_database_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match="not supported|cannot be read") as caught:
        Database(url)
    assert SECRET not in str(caught.value)


def test_no_representation_shows_a_password() -> None:
    url = f"postgresql://weft:{SECRET}@db.example/weft"
    redis = f"redis://:{SECRET}@cache.example"
    settings = ServerSettings(base_dir=Path("base"), database_url=url, redis_url=redis)
    for shown in (redacted(url), repr(Database(url)), repr(settings), str(settings)):
        assert SECRET not in shown
    assert redacted(url) == "postgresql://weft:***@db.example/weft"
