"""Brings a database to the schema of this release, or says that it is not there.

Runs Alembic from code, so that `weft migrate` works wherever the package runs. Knows no table.
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.pool import NullPool

from weft.db.engines import LOCK_TIMEOUT_MS, postgres_arguments
from weft.db.urls import sync_url

# how long a second `weft migrate` waits for the first
MIGRATION_WAIT_S = 600
_PACKAGES_WITH_TABLES = (
    "audit",
    "billing",
    "db",
    "idempotency",
    "limits",
    "registry",
    "tenancy",
    "usage",
)
_MIGRATION_LOCK = 0x6D696772


class SchemaMismatchError(Exception):
    """The database is at another revision than this release."""


def import_models() -> None:
    """Fill the metadata with every table there is: in modules whose names end in "models"."""
    for name in _PACKAGES_WITH_TABLES:
        package = importlib.import_module(f"weft.{name}")
        for module in pkgutil.iter_modules(package.__path__, f"weft.{name}."):
            if module.name.endswith("models"):
                importlib.import_module(module.name)


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
    """Alembic's configuration for a database URL."""
    config = Config()
    config.set_main_option("script_location", str(find_migrations()).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def migrate(url: str, revision: str = "head") -> tuple[str | None, str | None]:
    """Upgrade the database to `revision`, in one transaction; another `migrate` waits for it.

    Returns its revisions before and after.
    """
    _create_file(url)
    before, _ = revisions(url)
    command.upgrade(alembic_config(url), revision)
    after, _ = revisions(url)
    return before, after


@contextmanager
def migrating(url: str) -> Iterator[Connection]:
    """A connection in the one transaction that may change the schema: all of it or nothing."""
    engine = _create_engine(url)
    if engine.dialect.name == "sqlite":
        # the driver would commit before each change of a table
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin_immediate)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = '{MIGRATION_WAIT_S}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            # a migration that cannot have a table at once would keep all others waiting behind it
            connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
        yield connection


@contextmanager
def connecting(url: str) -> Iterator[Connection]:
    """A connection in a transaction of its own, for what is done before a server runs."""
    with _create_engine(url).begin() as connection:
        yield connection


def revisions(url: str) -> tuple[str | None, str | None]:
    """(the database's revision, this release's revision)."""
    with _create_engine(url).connect() as connection:
        return _current(connection), _head(find_migrations())


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@functools.cache
def _head(folder: Path) -> str | None:
    """A release's migrations do not change while it runs, and reading them takes 20 ms."""
    return ScriptDirectory(str(folder)).get_current_head()


def prepare(url: str) -> None:
    """Make and migrate a new database; SchemaMismatchError for one at another revision.

    A database with data is never changed at start: that is the operator's decision.
    """
    _create_file(url)
    with _create_engine(url).connect() as connection:
        is_empty = not inspect(connection).get_table_names()
        current = None if is_empty else _current(connection)
    if is_empty:
        migrate(url)
    elif current != (expected := _head(find_migrations())):
        raise SchemaMismatchError(
            f"The database is at revision {current or 'none'}, this release needs {expected}. "
            "Back it up, then run: weft migrate"
        )


def _create_file(url: str) -> None:
    """Of SQLite: one that only this user may read, as are the files that SQLite puts beside it."""
    parsed = sync_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).touch(mode=0o600)


def _create_engine(url: str) -> Engine:
    parsed = sync_url(url)
    arguments = (
        {"timeout": MIGRATION_WAIT_S}
        if parsed.get_backend_name() == "sqlite"
        else postgres_arguments(parsed, timeouts=False)
    )
    return create_engine(parsed, poolclass=NullPool, connect_args=arguments)


def _leave_transactions_to_us(connection: Any, _record: object) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
