"""`python -m weft.server.engine_process`: the engine of several gateway workers, and nothing else.

It ends on SIGTERM, with its supervisor, or when the engine has failed: then it is started again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

from weft.app import build_engine
from weft.engine.worker import InProcessEngine
from weft.ipc.server import engine_socket
from weft.server.control import ChildEnd, Failed, Progress, Started
from weft.telemetry.logs import set_up_logging

logger = logging.getLogger("weft.server")

_WATCH_INTERVAL_S = 0.1
# for the last outputs of requests that failed with the engine
_LAST_WORDS_S = 0.5


def main() -> int:
    """Exit status: 0 when it was told to end."""
    end = ChildEnd()
    set_up_logging(end.settings.log_format)

    def report(what: str, done: int, total: int) -> None:
        end.tell(Progress(what, done, total))

    try:
        engine = build_engine(end.settings, report)
    except (OSError, RuntimeError, ValueError) as error:
        end.tell(Failed(str(error)))
        return 1
    try:
        return asyncio.run(_serve(end, engine))
    finally:
        engine.close()


async def _serve(end: ChildEnd, engine: InProcessEngine) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reader, writer = await end.open()

    async def watch_supervisor() -> None:
        async for _ in reader:
            pass
        stop.set()

    watching = asyncio.create_task(watch_supervisor())
    async with engine_socket(engine, Path(end.handover.engine_socket)):
        writer.send(Started())
        while not stop.is_set() and engine.failure is None:
            try:
                async with asyncio.timeout(_WATCH_INTERVAL_S):
                    await stop.wait()
            except TimeoutError:
                continue
        if engine.failure is not None:
            logger.error("the engine has stopped: %s", engine.failure)
            await asyncio.sleep(_LAST_WORDS_S)
    watching.cancel()
    return 0 if engine.failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
