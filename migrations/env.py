"""Alembic's entry: the same for the `alembic` command and for `weft migrate`.

`weft migrate` hands the URL over; the bare command takes `WEFT_DATABASE_URL`.
"""

from __future__ import annotations

import os

from alembic import context

from weft.db.base import Base
from weft.db.schema import import_models, migrating


def _url() -> str:
    url = context.config.attributes.get("url") or os.environ.get("WEFT_DATABASE_URL")
    if not url:
        raise SystemExit("set WEFT_DATABASE_URL, or use: weft migrate")
    return str(url)


def _run() -> None:
    import_models()
    with migrating(_url()) as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
        )
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("offline migrations are not supported: they cannot be tested on SQLite")
_run()
