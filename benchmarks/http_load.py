"""A client that costs little beside the server that it measures: raw HTTP/1.1 on kept connections.

One request is in flight on each connection, and the next is sent when its answer is whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

_HEAD_END, _CHUNKS_END = b"\r\n\r\n", b"0\r\n\r\n"
_LENGTH, _CHUNKED = b"content-length:", b"transfer-encoding: chunked"


class Connection(asyncio.Protocol):
    """`ask` with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._num_awaited = 0  # bytes of an answer whose length is known; 0: its head is awaited
        self._is_chunked = False
        self._done: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, "127.0.0.1", port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection was closed")

    async def ask(self, request: bytes) -> None:
        """RuntimeError for any answer but a whole one with status 200."""
        assert self._transport is not None, "the connection is open"
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._num_awaited and not self._is_chunked and not self._take_head():
            return
        is_whole = (
            self._received.endswith(_CHUNKS_END)
            if self._is_chunked
            else len(self._received) >= self._num_awaited
        )
        if is_whole and self._done is not None:
            self._received.clear()
            self._num_awaited, self._is_chunked = 0, False
            self._done.set_result(None)

    def _take_head(self) -> bool:
        """Whether it is there."""
        end = self._received.find(_HEAD_END)
        if end < 0:
            return False
        head = bytes(self._received[:end]).lower()
        if not head.startswith(b"http/1.1 200"):
            self._fail(self._received.decode())
            return False
        self._is_chunked = _CHUNKED in head
        if not self._is_chunked:
            length = head.partition(_LENGTH)[2].partition(b"\r\n")[0]
            self._num_awaited = end + len(_HEAD_END) + int(length)
        return True

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RuntimeError(why))

    def close(self) -> None:
        self._done = None
        if self._transport is not None:
            self._transport.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What came of `num_connections` that asked all the time."""

    num_connections: int
    p50_ms: float
    p99_ms: float
    requests_per_s: float


async def load(
    port: int, request: bytes, num_connections: int, num_requests: int, warm_up: int
) -> Load:
    """Of `num_requests` over all connections, after `warm_up` that are not counted."""
    connections = [await Connection.open(port) for _ in range(num_connections)]
    await _ask(connections, request, warm_up)
    began_s = time.perf_counter()
    taken_ms = sorted(await _ask(connections, request, num_requests))
    rate = num_requests / (time.perf_counter() - began_s)
    for connection in connections:
        connection.close()
    p50, p99 = (taken_ms[int(len(taken_ms) * share)] for share in (0.5, 0.99))
    return Load(num_connections, p50, p99, rate)


async def _ask(connections: Sequence[Connection], request: bytes, count: int) -> list[float]:
    """The milliseconds of `count` requests."""
    left = iter(range(count))
    taken_ms: list[float] = []

    async def work(connection: Connection) -> None:
        for _ in left:
            began_s = time.perf_counter()
            await connection.ask(request)
            taken_ms.append((time.perf_counter() - began_s) * 1000)

    await asyncio.gather(*map(work, connections))
    return taken_ms
