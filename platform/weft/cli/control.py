"""Commands on the data folder's own database, without a server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncSession

from weft.cli.options import from_environment
from weft.cli.output import fail
from weft.db.database import Database
from weft.db.schema import SchemaMismatchError
from weft.db.urls import database_url, redacted
from weft.errors import WeftError
from weft.settings import database_file
from weft.tenancy.installation import prepare_installation
from weft.tenancy.secret_files import SecretFileError, SecretFiles

ResultT = TypeVar("ResultT")


def run_in_transaction(
    data_dir: Path,
    work: Callable[[AsyncSession, SecretFiles], Awaitable[ResultT]],
    *,
    creates: bool = False,
) -> ResultT:
    """Run `work` in one transaction; with `creates`, a new data folder is made ready first."""

    async def in_transaction(database: Database, secrets: SecretFiles) -> ResultT:
        async with database.writing() as session:
            return await work(session, secrets)

    return _run(data_dir, in_transaction, creates=creates)


def run_with_database(data_dir: Path, work: Callable[[Database], Awaitable[ResultT]]) -> ResultT:
    """Run `work`, which has transactions of its own."""

    async def with_database(database: Database, _secrets: SecretFiles) -> ResultT:
        return await work(database)

    return _run(data_dir, with_database, creates=False)


def _run(
    data_dir: Path,
    work: Callable[[Database, SecretFiles], Awaitable[ResultT]],
    *,
    creates: bool,
) -> ResultT:
    if data_dir.exists() and not data_dir.is_dir():
        raise fail(f"{data_dir} is not a folder")
    named = from_environment(os.environ).get("database_url")
    if not creates and named is None and not database_file(data_dir).is_file():
        raise fail(
            f"{data_dir} is not a Weft data folder: it has no {database_file(data_dir).name}"
        )
    url = database_url(named, database_file(data_dir))

    async def run() -> ResultT:
        database = Database(url)
        try:
            return await work(database, secrets)
        finally:
            await database.close()

    try:
        secrets = prepare_installation(data_dir, url)
        return asyncio.run(run())
    except (WeftError, SchemaMismatchError, SecretFileError, OSError, ValueError) as error:
        raise fail(str(error)) from error
    except DatabaseError as error:
        raise fail(f"{redacted(url)} could not be used: {error.orig}") from error
