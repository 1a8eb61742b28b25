"""Brings a database to the schema of this release, or says that it is not there.

Runs Alembic from code, so that `weft migrate` works wherever the package runs. Knows no table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool


class SchemaMismatchError(Exception):
    """The database is at another revision than this release."""


def find_migrations(environ: Mapping[str, str] = os.environ) -> Path:
    """The migrations folder: `WEFT_MIGRATIONS_DIR`, else beside the source tree."""
    named = environ.get("WEFT_MIGRATIONS_DIR")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "migrations"
    if not (folder / "env.py").is_file():
        raise FileNotFoundError(
            f"{folder} holds no migrations (env.py is missing); "
            "set WEFT_MIGRATIONS_DIR to the migrations folder"
        )
    return folder


def alembic_config(url: str) -> Config:
    """Alembic's configuration for a synchronous database URL."""
    config = Config()
    config.set_main_option("script_location", str(find_migrations()).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the database to `revision`."""
    command.upgrade(alembic_config(url), revision)


def revisions(url: str) -> tuple[str | None, str | None]:
    """(the database's revision, this release's revision)."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current, ScriptDirectory.from_config(alembic_config(url)).get_current_head()


def is_empty(url: str) -> bool:
    """True for a database without any table."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return not inspect(connection).get_table_names()


def prepare(url: str) -> None:
    """Migrate an empty database; SchemaMismatchError for any other revision than this release's.

    A database with data is never changed at start: that is the operator's decision.
    """
    if is_empty(url):
        migrate(url)
        return
    current, expected = revisions(url)
    if current != expected:
        raise SchemaMismatchError(
            f"The database is at revision {current or 'none'}, this release needs {expected}. "
            "Back up the data folder, then run: weft migrate"
        )
