"""Migrations: they make what the models say, can be undone, and guard the start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from weft.db import schema
from weft.db.lock import DataFolderInUseError, lock_data_folder
from weft.db.urls import sqlite_url


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


def test_a_second_migration_waits_for_the_first(url: str) -> None:
    order = []

    def migrate_second() -> None:
        with schema.migrating(url):
            order.append("second")

    second = threading.Thread(target=migrate_second)
    with schema.migrating(url):
        second.start()
        second.join(0.2)
        order.append("first")
    second.join()
    assert order == ["first", "second"]


def test_the_alembic_command_finds_the_migrations(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "weft.db")
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=Path(schema.__file__).parents[3],
        env={**os.environ, "WEFT_DATABASE_URL": url},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
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
