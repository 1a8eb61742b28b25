"""`weft migrate`: brings the data folder's database to this release."""

from __future__ import annotations

from weft.cli.output import DataOption, JsonOption, fail, out, print_json, spinner
from weft.settings import DEFAULT_DATA_DIR, database_file


def migrate(data: DataOption = DEFAULT_DATA_DIR, as_json: JsonOption = False) -> None:
    """Bring the database to this release's schema. Back up the data folder first."""
    from sqlalchemy.exc import DatabaseError

    from weft.db import schema
    from weft.db.database import create_database_file, sqlite_url

    try:
        data.mkdir(parents=True, exist_ok=True)
        create_database_file(database_file(data))
        url = sqlite_url(database_file(data), driver="sqlite")
        with spinner("Migrating..."):
            before, _ = schema.revisions(url)
            schema.migrate(url)
            after, _ = schema.revisions(url)
    except OSError as error:
        raise fail(str(error)) from error
    except DatabaseError as error:
        raise fail(f"{database_file(data)} could not be used: {error.orig}") from error
    if as_json:
        print_json({"object": "migration", "from": before, "to": after})
    elif before == after:
        out.print(f"The database is at {after} already.")
    else:
        out.print(f"Migrated from {before or 'an empty database'} to {after}.")
