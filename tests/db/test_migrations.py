"""Every migration, up and down, with rows in every table, on both databases."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool
from tests.db.filling import fill

from weft.db import schema
from weft.db.urls import sync_url


def revisions(url: str) -> list[str]:
    """From the first to this release's."""
    script = ScriptDirectory.from_config(schema.alembic_config(url))
    return [revision.revision for revision in script.walk_revisions()][::-1]


def fill_all(url: str) -> dict[str, int]:
    with create_engine(sync_url(url), poolclass=NullPool).begin() as connection:
        return fill(connection)


def test_every_migration_holds_with_rows_in_every_table(url: str) -> None:
    history = revisions(url)
    config = schema.alembic_config(url)
    for revision in history:
        schema.migrate(url, revision)
        counts = fill_all(url)
    assert min(counts.values()) > 0
    oldest: dict[str, int] = {}
    for revision in history[-2::-1]:
        command.downgrade(config, revision)
        oldest = fill_all(url)
    assert set(oldest) < set(counts)
    schema.migrate(url)
    command.check(config)
    # what was there all the time is there still
    newest = fill_all(url)
    assert {table: newest[table] for table in oldest} == oldest
    command.downgrade(config, "base")
    schema.migrate(url)


def test_a_migration_that_fails_leaves_the_schema_as_it_was(url: str) -> None:
    history = revisions(url)
    schema.migrate(url, history[0])
    with create_engine(sync_url(url), poolclass=NullPool).begin() as connection:
        # in the way of the next migration's last table
        connection.exec_driver_sql("CREATE TABLE upload_parts (id INTEGER)")
    with pytest.raises(DatabaseError, match="upload_parts"):
        schema.migrate(url)
    assert schema.revisions(url)[0] == history[0]
    with create_engine(sync_url(url), poolclass=NullPool).begin() as connection:
        connection.exec_driver_sql("DROP TABLE upload_parts")
    schema.migrate(url)
    command.check(schema.alembic_config(url))
