"""Alembic's entry: the same for the `alembic` command and for `weft migrate`.

`weft migrate` hands the URL over; the bare command takes `WEFT_DATABASE_URL`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil

from alembic import context

import weft
from weft.db.base import Base
from weft.db.schema import migrating

# tables are in modules of these whose names end in "models"; importing them fills the metadata
PACKAGES = ("audit", "billing", "db", "limits", "registry", "tenancy", "usage")


def _import_models() -> None:
    for package in pkgutil.iter_modules(weft.__path__, "weft."):
        if package.ispkg and package.name.removeprefix("weft.") in PACKAGES:
            path = importlib.import_module(package.name).__path__
            for module in pkgutil.iter_modules(path, f"{package.name}."):
                if module.name.endswith("models"):
                    importlib.import_module(module.name)


def _url() -> str:
    url = context.config.attributes.get("url") or os.environ.get("WEFT_DATABASE_URL")
    if not url:
        raise SystemExit("set WEFT_DATABASE_URL, or use: weft migrate")
    return str(url)


def _run() -> None:
    _import_models()
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
