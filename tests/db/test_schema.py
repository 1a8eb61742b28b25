"""Migrations: they make what the models say, can be undone, and guard the start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

from weft.db import schema
from weft.db.lock import DataFolderInUseError, lock_data_folder


def tables(url: str) -> set[str]:
    return set(inspect(create_engine(url, poolclass=NullPool)).get_table_names())


def test_the_migrations_make_exactly_the_models(url: str) -> None:
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


def test_two_commands_at_once_migrate_once(url: str) -> None:
    """The second waits; both find the migrations without `weft`."""
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=Path(schema.__file__).parents[3],
            env={**os.environ, "WEFT_DATABASE_URL": url},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for each in commands:
        _, said = each.communicate()
        assert each.returncode == 0, said
    current, expected = schema.revisions(url)
    assert current == expected is not None


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
