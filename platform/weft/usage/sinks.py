"""Where messages go: a file of JSON lines, or a server that takes CloudEvents over HTTP.

A message comes at least once and is the same each time, so whoever reads them keeps one for each
`source` and `id`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import httpx2

TIMEOUT_S = 30.0
_TAIL_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Message:
    """What is told: `id` is the same at every delivery."""

    id: str
    kind: str
    tenant_id: str
    payload: Mapping[str, Any]

    def to_cloud_event(self) -> dict[str, object]:
        """CloudEvents 1.0, in its JSON form."""
        ended_at = datetime.fromtimestamp(self.payload["ended_at_ms"] / 1000, UTC)
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": f"urn:weft:{self.payload['replica_id']}",
            "type": f"weft.{self.kind}",
            "subject": self.tenant_id,
            "time": ended_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": dict(self.payload),
        }


class SinkError(Exception):
    """The messages were not taken; they are to be delivered again later."""


class Sink(Protocol):
    """Takes messages for good: when `deliver` returns, they are safe there."""

    async def deliver(self, messages: Sequence[Message]) -> None:
        """All of them, or SinkError; some may have been taken then."""

    async def close(self) -> None:
        """Let go of connections."""


class FileSink:
    """Appends a line of JSON for each message; several processes may share the file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def deliver(self, messages: Sequence[Message]) -> None:
        lines = "".join(
            json.dumps(message.to_cloud_event(), separators=(",", ":")) + "\n"
            for message in messages
        )
        try:
            await asyncio.to_thread(self._append, lines.encode())
        except OSError as error:
            raise SinkError(f"{self._file} cannot be written: {error}") from error

    async def close(self) -> None:
        """Nothing is kept open."""

    def _append(self, data: bytes) -> None:
        fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._drop_torn_line(file.fileno())
            file.seek(0, os.SEEK_END)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _drop_torn_line(fd: int) -> None:
        """A crash may have left part of a line, whose message was not delivered then."""
        end = os.fstat(fd).st_size
        while end > 0:
            start = max(0, end - _TAIL_BYTES)
            place = os.pread(fd, end - start, start).rfind(b"\n")
            if place >= 0:
                end = start + place + 1
                break
            end = start
        os.ftruncate(fd, end)


class HttpSink:
    """Posts batches of CloudEvents; a status below 300 says that they were taken."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {"content-type": "application/cloudevents-batch+json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        self._url = url
        self._client = httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S)

    async def deliver(self, messages: Sequence[Message]) -> None:
        body = json.dumps([message.to_cloud_event() for message in messages])
        try:
            answer = await self._client.post(self._url, content=body)
        except httpx2.HTTPError as error:
            raise SinkError(f"the sink cannot be reached: {type(error).__name__}") from error
        if answer.status_code >= 300:
            raise SinkError(f"the sink answered {answer.status_code}")

    async def close(self) -> None:
        await self._client.aclose()


def create_sinks(targets: Mapping[str, str], token: str | None) -> dict[str, Sink]:
    """By name, from "file:/path" or a URL."""
    return {
        name: FileSink(Path(target.removeprefix("file:")))
        if target.startswith("file:")
        else HttpSink(target, token)
        for name, target in targets.items()
    }
