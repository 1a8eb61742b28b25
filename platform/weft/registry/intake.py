"""Receives an upload: two files of a multipart body, streamed to a temporary folder under a cap.

Knows multipart and bytes; judges nothing about adapters.
"""

from __future__ import annotations

import asyncio
import email.message
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from weft.errors import InvalidRequestError, PayloadTooLargeError
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME

MAX_CONFIG_BYTES = 1024 * 1024
# boundaries, part headers and whatever follows the last boundary
_MAX_FRAMING_BYTES = 64 * 1024
_TEMPORARY = "upload-"


@dataclass(frozen=True, slots=True)
class ReceivedAdapter:
    """The files of an upload; the tensors are gone when the receiving context ends."""

    config_bytes: bytes
    tensors_path: Path


@asynccontextmanager
async def receive_adapter(
    content_type: str, chunks: AsyncIterator[bytes], folder: Path, max_bytes: int
) -> AsyncIterator[ReceivedAdapter]:
    """Read the body to its end; InvalidRequestError or PayloadTooLargeError for a bad one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    try:
        parts = _Parts(_boundary(content_type), temporary, max_bytes)
        try:
            async for chunk in chunks:
                # parsing and the write to disk are quick, but not quick enough for the event loop
                await asyncio.to_thread(parts.feed, chunk)
            parts.finish()
        finally:
            parts.close()
        yield ReceivedAdapter((temporary / CONFIG_NAME).read_bytes(), temporary / TENSORS_NAME)
    finally:
        await asyncio.to_thread(shutil.rmtree, temporary)


def sweep_uploads(folder: Path) -> None:
    """Remove what uploads left when their process was killed; none may be running."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequestError(
            f"Upload as multipart/form-data with the files {CONFIG_NAME} and {TENSORS_NAME}.",
            code="unsupported_media_type",
        )
    return options[b"boundary"]


class _Parts:
    """Writes the two expected parts to files of their own names; any other part is refused."""

    def __init__(self, boundary: bytes, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._caps = {CONFIG_NAME: min(MAX_CONFIG_BYTES, max_bytes), TENSORS_NAME: max_bytes}
        self._num_bytes_left = max_bytes + MAX_CONFIG_BYTES + _MAX_FRAMING_BYTES
        self._sizes: dict[str, int] = {}
        self._complete: set[str] = set()
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._file: BinaryIO | None = None
        self._is_finished = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, chunk: bytes) -> None:
        self._num_bytes_left -= len(chunk)
        if self._num_bytes_left < 0:
            raise PayloadTooLargeError("The upload is larger than its two files may be.")
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error

    def finish(self) -> None:
        missing = [name for name in self._caps if name not in self._complete]
        if missing:
            raise InvalidRequestError(f"The upload lacks the file {missing[0]}.", param=missing[0])
        if not self._is_finished:
            raise InvalidRequestError("The multipart body ends too early.")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _on_header_end(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        self._name = self._expected_name()
        if self._name in self._sizes:
            raise InvalidRequestError(f"The upload has {self._name} twice.", param=self._name)
        self._sizes[self._name] = 0
        # one of our two names, never the client's text
        self._file = (self._folder / self._name).open("xb")

    def _expected_name(self) -> str:
        message = email.message.Message()
        message["content-disposition"] = self._disposition.decode("utf-8", "replace")
        names = (
            message.get_param("name", header="content-disposition"),
            message.get_param("filename", header="content-disposition"),
        )
        for name in names:
            if name in self._caps:
                return str(name)
        raise InvalidRequestError(
            f"The upload has an unexpected part; it takes {CONFIG_NAME} and {TENSORS_NAME}."
        )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None, "data comes after a part's headers"
        self._sizes[self._name] += end - start
        if self._sizes[self._name] > self._caps[self._name]:
            raise PayloadTooLargeError(
                f"{self._name} is larger than {self._caps[self._name]} bytes.", param=self._name
            )
        self._file.write(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        self.close()
        self._complete.add(self._name)

    def _on_end(self) -> None:
        self._is_finished = True


def _malformed(error: Exception) -> InvalidRequestError:
    return InvalidRequestError(f"The multipart body is malformed: {error}")
