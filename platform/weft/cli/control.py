"""Commands on the data folder's own database, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncSession

from weft.cli.output import fail
from weft.db.database import Database, create_database_file, sqlite_url
from weft.db.schema import SchemaMismatchError, prepare
from weft.errors import WeftError
from weft.settings import database_file
from weft.tenancy.secret_files import SecretFileError, SecretFiles, read_or_create_secrets

ResultT = TypeVar("ResultT")


def run_in_transaction(
    data_dir: Path,
    work: Callable[[AsyncSession, SecretFiles], Awaitable[ResultT]],
    *,
    creates: bool = False,
) -> ResultT:
    """Run `work` in one transaction; with `creates`, a new data folder is made ready first."""
    if data_dir.exists() and not data_dir.is_dir():
        raise fail(f"{data_dir} is not a folder")
    if not creates and not database_file(data_dir).is_file():
        raise fail(
            f"{data_dir} is not a Weft data folder: it has no {database_file(data_dir).name}"
        )
    try:
        secrets = read_or_create_secrets(data_dir)
        file = database_file(data_dir)
        create_database_file(file)
        prepare(sqlite_url(file, driver="sqlite"))
        return asyncio.run(_run(file, secrets, work))
    except (WeftError, SchemaMismatchError, SecretFileError, OSError) as error:
        raise fail(str(error)) from error
    except DatabaseError as error:
        raise fail(f"{database_file(data_dir)} could not be used: {error.orig}") from error


async def _run(
    file: Path,
    secrets: SecretFiles,
    work: Callable[[AsyncSession, SecretFiles], Awaitable[ResultT]],
) -> ResultT:
    database = Database(sqlite_url(file))
    try:
        async with database.writing() as session:
            return await work(session, secrets)
    finally:
        await database.close()
