"""What goes over the socket: a length (4 bytes, big-endian) and a message (MessagePack) each.

Messages are typed: whatever is not one of those that a connection is for, or is longer than
`MAX_FRAME_BYTES`, ends it. Nothing is ever unpickled. Knows no message itself: those of the
engine's socket are in `protocol`, those of a supervisor and its processes in `weft.server.control`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 32 * 1024 * 1024
_LENGTH_BYTES = 4


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What goes in a frame. A question's `call` numbers it, and its answer has the same."""


class FrameError(Exception):
    """What came is no message of this protocol."""


def read_frame(sock: socket.socket) -> bytes:
    """One message's bytes from a socket that blocks; FrameError at its end or for a long one."""
    size = int.from_bytes(_read_exactly(sock, _LENGTH_BYTES), "big")
    if size > MAX_FRAME_BYTES:
        raise FrameError(f"A frame of {size} bytes came; at most {MAX_FRAME_BYTES} may.")
    return _read_exactly(sock, size)


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise FrameError("The connection ended within a frame.")
        data += part
    return bytes(data)


def write_frame(sock: socket.socket, payload: bytes) -> None:
    """To a socket that blocks."""
    sock.sendall(len(payload).to_bytes(_LENGTH_BYTES, "big") + payload)


T = TypeVar("T")


class FrameReader(Generic[T]):
    """The messages of one connection; `messages` is their union."""

    def __init__(self, reader: asyncio.StreamReader, messages: Any) -> None:
        self._reader = reader
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(messages)

    async def read(self) -> T | None:
        """The next one; None when the other side has closed. FrameError for anything else."""
        try:
            size = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"A frame of {size} bytes came; at most {MAX_FRAME_BYTES} may.")
            payload = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        try:
            return self._decoder.decode(payload)
        except msgspec.DecodeError as error:
            raise FrameError(f"A frame could not be read: {error}") from error

    async def __aiter__(self) -> AsyncIterator[T]:
        while (message := await self.read()) is not None:
            yield message


class FrameWriter:
    """Sends messages; those of one turn of the event loop go out together.

    A peer that takes nothing for `stall_timeout_s` while more than the socket holds waits for it is
    cut off.
    """

    def __init__(self, writer: asyncio.StreamWriter, stall_timeout_s: float) -> None:
        self._writer, self._stall_timeout_s = writer, stall_timeout_s
        self._encoder = msgspec.msgpack.Encoder()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []

    def send(self, message: Message) -> None:
        """ValueError for one that is too long, and then nothing is sent."""
        payload = self._encoder.encode(message)
        if len(payload) > MAX_FRAME_BYTES:
            raise ValueError(
                f"A message of {len(payload)} bytes is too long; at most {MAX_FRAME_BYTES} go."
            )
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting += (len(payload).to_bytes(_LENGTH_BYTES, "big"), payload)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting and not self._writer.is_closing():
            self._writer.write(b"".join(waiting))

    async def drained(self) -> None:
        """Wait while the peer is behind; ConnectionError when it is gone, or cut off."""
        if not self._writer.transport.get_write_buffer_size() and not self._writer.is_closing():
            return  # the common case, without a timer
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await self._writer.drain()
        except TimeoutError:
            self._writer.transport.abort()
            raise ConnectionAbortedError("The other side reads nothing.") from None

    async def close(self) -> None:
        """After what was sent has gone out."""
        self._flush()
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return  # it was closed by the other side, or cut off
