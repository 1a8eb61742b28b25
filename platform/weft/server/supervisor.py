"""Several gateway workers on one port, one engine, and one place that watches them all.

The supervisor holds the data folder, keeps its processes running, answers probes, adds their
metrics up, and drains them on SIGTERM. It serves no request itself.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weft.gateway.metrics import EngineMetrics
from weft.ipc.client import RemoteEngine
from weft.ipc.frames import Message
from weft.messages import EngineDeadError, EngineInfo
from weft.server.children import Child, Keeper
from weft.server.control import (
    AskFault,
    AskMetrics,
    Fault,
    Handover,
    Metrics,
    Progress,
    encode_settings,
)
from weft.server.http import bind
from weft.server.probes import probe_server
from weft.server.summing import add_up
from weft.settings import ServerSettings

logger = logging.getLogger("weft.server")

_ENGINE, _WORKER = "weft.server.engine_process", "weft.server.worker_process"
# beyond the drain's deadline, for aborted requests to be metered and for connections to close
_DRAIN_GRACE_S = 30.0
_ENGINE_STOP_S = 15.0
# a worker whose event loop has not come round for this long is started anew
_HANG_S = 30.0
_HANG_INTERVAL_S = 5.0
# of a worker that is asked by a probe
_ANSWER_S = 4.0
# of a Unix socket's path, its end included
_MAX_PATH_BYTES = 107


def supervise(
    settings: ServerSettings,
    on_progress: Callable[[str, int, int], None],
    on_started: Callable[[EngineInfo, int], None],
    engine_module: str = _ENGINE,
) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends all at once.

    `on_started` gets the engine's facts and the port; `engine_module` is what the engine's process
    runs. ChildFailedError when a process cannot
    start, OSError when an address is taken. The caller holds the data folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="weft-"))  # mode 0700
    try:
        path = folder / "engine.sock"
        if len(bytes(path)) > _MAX_PATH_BYTES:
            raise OSError(f"{path} is too long for a socket; set TMPDIR to a shorter folder")
        probe_host, probe_port = settings.probes_at or ("", 0)
        with (
            bind(settings.host, settings.port, is_shared=True) as reserved,
            bind(probe_host, probe_port) as probe_socket,
        ):
            port: int = reserved.getsockname()[1]
            supervisor = Supervisor(settings, path, port, on_progress, engine_module)
            asyncio.run(supervisor.run(probe_socket, on_started))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Supervisor:
    """`run` once. Is what the probes ask (see `weft.server.probes`)."""

    def __init__(
        self,
        settings: ServerSettings,
        path: Path,
        port: int,
        on_progress: Callable[[str, int, int], None],
        engine_module: str = _ENGINE,
    ) -> None:
        self._engine_module = engine_module
        self._settings, self._path, self._port = settings, path, port
        self._on_progress = on_progress
        self._keepers: list[Keeper] = []
        self._client: RemoteEngine | None = None
        self._engine_metrics: EngineMetrics | None = None
        self._last_metrics: dict[Child, bytes] = {}
        self._ended_metrics = b""
        self._is_draining = False
        self.has_started = False

    async def run(
        self, probe_socket: socket.socket, on_started: Callable[[EngineInfo, int], None]
    ) -> None:
        """Start all, keep all, end all."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, stop)
        stopping = asyncio.create_task(stop.wait())
        watching = asyncio.create_task(self._watch_for_ever())
        handover = Handover(encode_settings(self._settings), str(self._path), self._port)
        engine = Keeper("the engine", self._engine_module, handover, self._heard)
        workers = self._keepers
        try:
            with probe_server(self, probe_socket, loop):
                if not await _first(engine.first_started, stopping):
                    return
                self._client = await RemoteEngine.connect(self._path, timeout_s=_HANG_S)
                self._engine_metrics = EngineMetrics(self._client)
                workers += [
                    Keeper(f"worker {i}", _WORKER, handover, on_end=self._ended)
                    for i in range(self._settings.num_workers)
                ]
                for worker in workers:
                    if not await _first(worker.first_started, stopping):
                        return
                self.has_started = True
                on_started(self._client.info, self._port)
                await stopping
                await self._drain()
        finally:
            watching.cancel()
            for worker in workers:  # after a drain there is none
                worker.kill()
            await asyncio.gather(*(worker.stop(_ENGINE_STOP_S) for worker in workers))
            if self._client is not None:
                await self._client.close()
            if not self.has_started:  # it may be loading, which hears no signal
                engine.kill()
            await engine.stop(_ENGINE_STOP_S)

    def _signalled(self, stop: asyncio.Event) -> None:
        if not stop.is_set():
            stop.set()
            return
        for worker in self._keepers:
            worker.kill()

    async def _drain(self) -> None:
        """All workers at once; the engine lives until the last has ended."""
        self._is_draining = True
        deadline_s = self._settings.drain_deadline_s + _DRAIN_GRACE_S
        await asyncio.gather(*(worker.stop(deadline_s) for worker in self._keepers))

    def _heard(self, message: Message) -> None:
        if isinstance(message, Progress):
            self._on_progress(message.what, message.done, message.total)

    def _ended(self, child: Child) -> None:
        last = self._last_metrics.pop(child, None)
        if last is not None:
            self._ended_metrics = add_up((), ended=(self._ended_metrics, last))

    # ---- what the probes ask ----

    async def find_fault(self) -> str:
        if self._is_draining:
            return "The server is draining."
        if self._client is None:
            return "The engine is starting."
        if self._client.not_ready_reason:
            return self._client.not_ready_reason
        faults = await asyncio.gather(*(_fault_of(keeper) for keeper in self._keepers))
        if "" in faults:  # one worker is enough: requests go to those that listen
            return ""
        return faults[0] if faults else "The workers are starting."

    async def render_metrics(self) -> bytes:
        """The workers' added up, and the engine's. A process that does not answer is left out."""
        children = [child for keeper in self._keepers if (child := keeper.running) is not None]
        texts = await asyncio.gather(*map(self._metrics_of, children))
        summed = add_up(texts, ended=(self._ended_metrics,))
        if self._engine_metrics is None:
            return summed
        try:
            return summed + await self._engine_metrics.render()
        except EngineDeadError:
            return summed

    async def _metrics_of(self, child: Child) -> bytes:
        try:
            async with asyncio.timeout(_ANSWER_S):
                text = (await child.ask(AskMetrics, Metrics)).text
        except (ConnectionError, TimeoutError):
            return self._last_metrics.get(child, b"")
        self._last_metrics[child] = text
        return text

    async def _watch_for_ever(self) -> None:
        """Kill workers that hang; what keeps them starts others."""
        while True:
            await asyncio.sleep(_HANG_INTERVAL_S)
            await asyncio.gather(*map(_kill_if_it_hangs, self._keepers))


async def _first(started: asyncio.Future[None], stopping: asyncio.Task[bool]) -> bool:
    """Wait for a process's start, or for a signal: then False. Raises why it cannot start."""
    both: set[asyncio.Future[Any]] = {started, stopping}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not started.done():
        return False
    started.result()
    return True


async def _fault_of(keeper: Keeper) -> str:
    child = keeper.running
    if child is None:
        return f"{keeper.name} is starting."
    try:
        async with asyncio.timeout(_ANSWER_S):
            return (await child.ask(AskFault, Fault)).reason
    except ConnectionError:
        return f"{keeper.name} has ended."
    except TimeoutError:
        return f"{keeper.name} does not answer."


async def _kill_if_it_hangs(keeper: Keeper) -> None:
    child = keeper.running
    if child is None:
        return
    try:
        async with asyncio.timeout(_HANG_S):
            await child.ask(AskFault, Fault)
    except ConnectionError:
        return  # it has ended, which its keeper knows
    except TimeoutError:
        logger.error("%s has not answered for %.0f s and is killed", keeper.name, _HANG_S)
        child.signal(signal.SIGKILL)
