"""A client of a real engine: in the same process, or over its socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tests.engine.started import Runner, start_worker

from weft.ipc.client import RemoteEngine
from weft.ipc.server import engine_socket
from weft.messages import EngineClient

if TYPE_CHECKING:
    from tests.bench import Bench

    from weft.engine.worker import InProcessEngine


@dataclass
class Rig:
    """An engine and one client of it. `link` says how they are connected."""

    link: str
    dense: Bench
    path: Path
    stack: AsyncExitStack
    digests: dict[str, str] = field(default_factory=dict)

    async def start(self, run: Runner | None = None, **options: Any) -> EngineClient:
        worker = self.start_engine(run, **options)
        return worker if self.link == "in process" else await self.connect(worker)

    def start_engine(self, run: Runner | None = None, **options: Any) -> InProcessEngine:
        worker, self.digests = start_worker(self.dense, run, **options)
        self.stack.callback(worker.close)
        return worker

    async def connect(self, engine: EngineClient) -> RemoteEngine:
        await self.stack.enter_async_context(engine_socket(engine, self.path))
        return await self.client()

    async def client(self) -> RemoteEngine:
        client = await RemoteEngine.connect(self.path, timeout_s=10)
        self.stack.push_async_callback(client.close)
        return client


@pytest_asyncio.fixture(params=["in process", "over a socket"])
async def rig(request: pytest.FixtureRequest, dense: Bench, tmp_path: Path) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        yield Rig(request.param, dense, tmp_path / "engine.sock", stack)
