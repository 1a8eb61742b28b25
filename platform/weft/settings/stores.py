"""Where rows and shared counters are kept. The URLs hold passwords: they come from variables, so
that no list of processes shows them, and no `repr` does."""

from __future__ import annotations

from dataclasses import dataclass

from weft.settings.fields import Settings, setting


@dataclass(frozen=True, kw_only=True)
class StoreSettings(Settings):
    """`database_url`: postgresql://user:password@host/name; None: SQLite in the data folder.
    `redis_url`: rediss://user:password@host:port/number, for the limits that several processes
    share; None: each process counts for itself."""

    database_url: str | None = setting(None, environment="WEFT_DATABASE_URL")
    redis_url: str | None = setting(None, environment="WEFT_REDIS_URL")
