"""`weft migrate`: brings the database to this release."""

from __future__ import annotations

import os

from weft.cli.options import from_environment
from weft.cli.output import DataOption, JsonOption, fail, out, print_json, spinner
from weft.settings import DEFAULT_DATA_DIR, database_file


def migrate(data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Bring the database to this release's schema. Back it up first."""
    from sqlalchemy.exc import DatabaseError

    from weft.db import schema
    from weft.db.urls import database_url, redacted

    url = from_environment(os.environ).get("database_url")
    try:
        if url is None:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
        url = database_url(url, database_file(data))
        with spinner("Migrating..."):
            before, after = schema.migrate(url)
    except (OSError, ValueError) as error:
        raise fail(str(error)) from error
    except DatabaseError as error:
        assert url is not None
        raise fail(f"{redacted(url)} could not be used: {error.orig}") from error
    if as_json:
        print_json({"object": "migration", "from": before, "to": after})
    elif before == after:
        out.print(f"The database is at {after} already.")
    else:
        out.print(f"Migrated from {before or 'an empty database'} to {after}.")
