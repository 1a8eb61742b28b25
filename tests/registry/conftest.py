"""What the tests of the registry share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.internet import Handler, Internet, running_server
from tests.registry.shelf import Shelf

from weft.db.database import Database
from weft_adapters.store import FolderStore


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port and certificate of a local https server."""
    with running_server(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture
def internet(server: tuple[int, Path], tmp_path: Path) -> Internet:
    Handler.hits.clear()
    Handler.headers_seen.clear()
    Handler.files.clear()
    Handler.file_headers.clear()
    return Internet(server[0], server[1], tmp_path)


@pytest.fixture
async def shelf(tmp_path: Path, database_url: str) -> AsyncIterator[Shelf]:
    database = Database(database_url)
    yield Shelf(tmp_path, database, FolderStore(tmp_path / "store"))
    await database.close()
