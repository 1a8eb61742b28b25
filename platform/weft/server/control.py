"""What a supervisor and its processes say to each other, over a pair of sockets.

A child's end is its standard input. The end of that means that the supervisor is gone, and then its
children end, too.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import msgspec

from weft.ipc.frames import FrameReader, FrameWriter, Message, read_frame, write_frame
from weft.settings import ServerSettings

_STALL_TIMEOUT_S = 30.0


class Handover(Message, frozen=True, tag="handover"):
    """The first message to a child. `settings` may hold passwords, which is why they come this way
    and not as arguments. `engine_socket` is where the engine is offered, or found."""

    settings: bytes
    engine_socket: str
    port: int = 0


class AskFault(Message, frozen=True, tag="ask_fault"):
    call: int


class AskMetrics(Message, frozen=True, tag="ask_metrics"):
    call: int


SupervisorMessage = Handover | AskFault | AskMetrics


class Progress(Message, frozen=True, tag="progress"):
    what: str
    done: int
    total: int


class Started(Message, frozen=True, tag="started"):
    """The child does its work now."""


class Failed(Message, frozen=True, tag="failed"):
    """The child cannot start, and ends; trying again would not help."""

    message: str


class Fault(Message, frozen=True, tag="fault"):
    """Why requests should not come to the worker; empty when they are welcome."""

    call: int
    reason: str


class Metrics(Message, frozen=True, tag="metrics"):
    """Of the worker's requests, in Prometheus' text format."""

    call: int
    text: bytes


ChildMessage = Progress | Started | Failed | Fault | Metrics


def encode_settings(settings: ServerSettings) -> bytes:
    return msgspec.json.encode(settings, enc_hook=str)


def decode_settings(data: bytes) -> ServerSettings:
    return msgspec.json.decode(data, type=ServerSettings, dec_hook=_decode)


def _decode(kind: type, value: Any) -> Any:
    assert kind is Path, "no other setting needs more than JSON has"
    return Path(value)


class ChildEnd:
    """A child's end, from its first moment: without an event loop, and then with one."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=0)
        handover = msgspec.msgpack.decode(read_frame(self._socket), type=SupervisorMessage)
        assert isinstance(handover, Handover), "it is the first message"
        self.handover = handover
        self.settings = decode_settings(handover.settings)

    def tell(self, message: Message) -> None:
        """Blocks until it is written; before `open`, from any one thread."""
        write_frame(self._socket, msgspec.msgpack.encode(message))

    async def open(self) -> tuple[FrameReader[SupervisorMessage], FrameWriter]:
        return await open_end(self._socket, SupervisorMessage)


async def open_end(sock: socket.socket, messages: Any) -> tuple[FrameReader[Any], FrameWriter]:
    """An end in an event loop, for reading `messages`."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    return FrameReader(reader, messages), FrameWriter(writer, _STALL_TIMEOUT_S)
