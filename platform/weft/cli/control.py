"""Commands on the data folder's own database, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from weft.cli.output import fail
from weft.db.database import Database, sqlite_url
from weft.db.schema import SchemaMismatchError, prepare
from weft.errors import WeftError
from weft.settings import database_file
from weft.tenancy.secret_files import SecretFileError, SecretFiles, read_or_create_secrets

ResultT = TypeVar("ResultT")


def run_in_transaction(
    data_dir: Path, work: Callable[[AsyncSession, SecretFiles], Awaitable[ResultT]]
) -> ResultT:
    """Run `work` in one transaction; a new data folder is made ready first."""
    try:
        secrets = read_or_create_secrets(data_dir)
        file = database_file(data_dir)
        prepare(sqlite_url(file, driver="sqlite"))
        return asyncio.run(_run(file, secrets, work))
    except (WeftError, SchemaMismatchError, SecretFileError, OSError) as error:
        raise fail(str(error)) from error


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
