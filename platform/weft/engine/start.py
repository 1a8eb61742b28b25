"""An engine is built in the thread that runs it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from weft.engine.build import build_engine
from weft.engine.config import EngineConfig
from weft.engine.worker import InProcessEngine
from weft_adapters.store import RemoteStore


def start_engine(
    config: EngineConfig,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    remote_store: RemoteStore | None = None,
) -> InProcessEngine:
    """Build an engine in its own thread, and return while it warms up.

    No other thread computes with torch: OpenMP keeps a team of threads for each thread that does,
    and more teams than cores slow every step down (see `weft_adapters.pool`). `on_progress` is
    called from that thread. Raises what `build_engine` raises.
    """
    outcome: queue.SimpleQueue[InProcessEngine | BaseException] = queue.SimpleQueue()
    worker: InProcessEngine | None = None

    def on_adapter_change() -> None:
        if worker is not None:
            worker.wake()

    def build_and_run() -> None:
        nonlocal worker
        try:
            built = build_engine(config, on_progress, on_adapter_change, remote_store)
            worker = InProcessEngine(config, built)
        except BaseException as error:  # raised where the caller waits
            outcome.put(error)
            return
        outcome.put(worker)
        worker.run()

    threading.Thread(target=build_and_run, name="weft-engine", daemon=True).start()
    started = outcome.get()
    if isinstance(started, BaseException):
        raise started
    return started
