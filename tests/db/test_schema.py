"""Migrations: they make what the models say, can be undone, and guard the start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

from weft.db import schema
from weft.db.lock import DataFolderInUseError, lock_data_folder
from weft.db.urls import sqlite_url


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


def tables(url: str) -> set[str]:
    return set(inspect(create_engine(url, poolclass=NullPool)).get_table_names())


def test_the_migrations_make_exactly_the_models(url: str) -> None:
    schema.migrate(url)
    command.check(schema.alembic_config(url))


def test_a_migration_can_be_undone_and_redone(url: str) -> None:
    schema.migrate(url)
    assert "usage_events" in tables(url)
    command.downgrade(schema.alembic_config(url), "base")
    assert tables(url) == {"alembic_version"}
    schema.migrate(url)
    command.check(schema.alembic_config(url))


def test_an_empty_database_is_made_ready_once(url: str) -> None:
    schema.prepare(url)
    schema.prepare(url)
    current, expected = schema.revisions(url)
    assert current == expected is not None


def test_another_schema_refuses_to_start_and_names_the_command(url: str) -> None:
    schema.prepare(url)
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'older'"))
    with pytest.raises(schema.SchemaMismatchError, match="weft migrate"):
        schema.prepare(url)


def test_the_alembic_command_finds_the_migrations(url: str) -> None:
    root = Path(schema.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=root,
        env={**os.environ, "WEFT_DATABASE_URL": url},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "tenants" in tables(url)


def test_a_missing_migrations_folder_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="WEFT_MIGRATIONS_DIR"):
        schema.find_migrations({"WEFT_MIGRATIONS_DIR": str(tmp_path)})


def test_a_data_folder_has_one_server(tmp_path: Path) -> None:
    with (
        lock_data_folder(tmp_path),
        pytest.raises(DataFolderInUseError),
        lock_data_folder(tmp_path),
    ):
        pass
    with lock_data_folder(tmp_path):
        pass
