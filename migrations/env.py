"""Alembic's entry: the same for the `alembic` command and for `weft migrate`.

`weft migrate` hands the URL over; the bare command takes `WEFT_DATABASE_URL` (synchronous).
"""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from weft.db.base import Base
from weft.registry import models as registry_models
from weft.tenancy import models as tenancy_models
from weft.usage import models as usage_models

# importing the models is what fills the metadata
TABLES = (tenancy_models, registry_models, usage_models)


def _url() -> str:
    url = context.config.attributes.get("url") or os.environ.get("WEFT_DATABASE_URL")
    if not url:
        raise SystemExit("set WEFT_DATABASE_URL, or use: weft migrate")
    return str(url)


def _run() -> None:
    engine = create_engine(_url(), poolclass=NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            compare_type=True,
        )
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("offline migrations are not supported: they cannot be tested on SQLite")
_run()
