"""`python -m weft.server.worker_process`: one of several gateway workers on a port.

It drains and ends on SIGTERM, or when its supervisor is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy.exc import DatabaseError

from weft.app import create_app
from weft.db.errors import DatabaseUnavailableError
from weft.db.schema import SchemaMismatchError
from weft.gateway.readiness import find_fault
from weft.ipc.client import RemoteEngine
from weft.ipc.frames import FrameReader, FrameWriter
from weft.ipc.link import EngineMismatchError
from weft.server.control import (
    AskFault,
    AskMetrics,
    ChildEnd,
    Failed,
    Fault,
    Metrics,
    Started,
    SupervisorMessage,
)
from weft.server.http import DrainingServer, bind
from weft.settings import ServerSettings
from weft.telemetry.logs import set_up_logging
from weft.tenancy.secret_files import SecretFileError
from weft.tokenizer import BaseTokenizer

logger = logging.getLogger("weft.server")

# an engine that is being started again is back within this time, or the worker is, too
_ENGINE_TIMEOUT_S = 60.0


def main() -> int:
    """Exit status: 0 when it was told to end."""
    end = ChildEnd()
    set_up_logging(end.settings.log_format)
    settings = replace(end.settings, port=end.handover.port)
    try:
        asyncio.run(_serve(end, settings))
    except (
        EngineMismatchError,
        DatabaseError,
        DatabaseUnavailableError,
        OSError,
        RuntimeError,
        SchemaMismatchError,
        SecretFileError,
        ValueError,
    ) as error:
        logger.exception("the worker could not serve")
        return _tell_failure(end, error)
    return 0


def _tell_failure(end: ChildEnd, error: Exception) -> int:
    try:
        end.tell(Failed(f"A worker could not serve: {error}"))
    except OSError:
        logger.error("the supervisor is gone")
    return 1


async def _serve(end: ChildEnd, settings: ServerSettings) -> None:
    reader, writer = await end.open()
    engine_path = Path(end.handover.engine_socket)
    engine = await RemoteEngine.connect(engine_path, timeout_s=_ENGINE_TIMEOUT_S)
    try:
        app = create_app(settings, engine, BaseTokenizer.from_dir(settings.base_dir))
        server = DrainingServer(app, settings)
        with bind(settings.host, settings.port, is_shared=True) as sock:
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            if server.started:
                writer.send(Started())
            answering = asyncio.create_task(_answer(reader, writer, app))
            await serving
        answering.cancel()
        if not server.started:
            raise RuntimeError("The server could not start; the log above says why.")
    finally:
        await engine.close()


async def _answer(
    reader: FrameReader[SupervisorMessage], writer: FrameWriter, app: FastAPI
) -> None:
    """The supervisor's questions; when it is gone, drain as if it had said so."""
    async for message in reader:
        match message:
            case AskFault(call):
                writer.send(Fault(call, await find_fault(app.state.gateway, app.state.database)))
            case AskMetrics(call):
                writer.send(Metrics(call, app.state.gateway.metrics.render()))
    logger.error("the supervisor is gone")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
