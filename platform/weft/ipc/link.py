"""A client's connection to the engine: made by a greeting, so that two releases never misread each
other."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from weft.ipc.frames import FrameReader, FrameWriter
from weft.ipc.protocol import PROTOCOL, EngineMessage, Hello, Welcome

# the engine tells of itself every second
SILENCE_S = 15.0
_STALL_TIMEOUT_S = 30.0


class EngineMismatchError(Exception):
    """The engine speaks another protocol, or has come back with another base."""


@dataclass(slots=True)
class Link:
    """One connection, from its greeting to its end."""

    reader: FrameReader[EngineMessage]
    writer: FrameWriter
    welcome: Welcome


async def greet(path: Path) -> Link:
    """OSError where no engine answers, EngineMismatchError where it is not of this release."""
    raw_reader, raw_writer = await asyncio.open_unix_connection(str(path))
    reader: FrameReader[EngineMessage] = FrameReader(raw_reader, EngineMessage)
    writer = FrameWriter(raw_writer, _STALL_TIMEOUT_S)
    try:
        async with asyncio.timeout(SILENCE_S):
            writer.send(Hello(PROTOCOL))
            hello, welcome = await reader.read(), None
            if hello == Hello(PROTOCOL):
                welcome = await reader.read()
        if isinstance(welcome, Welcome):
            return Link(reader, writer, welcome)
    except BaseException:
        raw_writer.transport.abort()
        raise
    await writer.close()
    if hello is None or hello == Hello(PROTOCOL):
        raise ConnectionResetError("The engine has closed the connection.")
    raise EngineMismatchError("The engine is of another release: restart the server.")
