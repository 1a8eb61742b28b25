"""Writes the files of a multipart body to a folder, each under a cap; no file is held in memory.

Knows multipart and bytes; which files are expected is the caller's.
"""

from __future__ import annotations

import asyncio
import email.message
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from weft.errors import InvalidRequestError, PayloadTooLargeError

# boundaries, part headers and whatever follows the last boundary
_MAX_FRAMING_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class PartRule:
    """What one file of a body may be."""

    max_bytes: int
    is_required: bool = True


async def write_parts(
    content_type: str, chunks: AsyncIterator[bytes], folder: Path, rules: Mapping[str, PartRule]
) -> dict[str, int]:
    """Read the body to its end and write each part to a file of its rule's name in `folder`.

    Gives the sizes of the files that came. InvalidRequestError or PayloadTooLargeError for a body
    that is no multipart, lacks a file, or has one that no rule names, twice or too large.
    """
    parts = _Parts(_boundary(content_type, rules), folder, rules)
    try:
        async for chunk in chunks:
            # parsing and the write to disk are quick, but not quick enough for the event loop
            await asyncio.to_thread(parts.feed, chunk)
        return parts.finish()
    finally:
        parts.close()


def _boundary(content_type: str, rules: Mapping[str, PartRule]) -> bytes:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequestError(
            f"Send multipart/form-data with {_required(rules)}.", code="unsupported_media_type"
        )
    return options[b"boundary"]


def _required(rules: Mapping[str, PartRule]) -> str:
    return " and ".join(name for name, rule in rules.items() if rule.is_required)


class _Parts:
    """Writes the expected parts to files of their own names; any other part is refused."""

    def __init__(self, boundary: bytes, folder: Path, rules: Mapping[str, PartRule]) -> None:
        self._folder, self._rules = folder, rules
        self._num_bytes = 0
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
        self._num_bytes += len(chunk)
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error
        if self._num_bytes - sum(self._sizes.values()) > _MAX_FRAMING_BYTES:
            raise PayloadTooLargeError("The body has too many bytes around its files.")

    def finish(self) -> dict[str, int]:
        missing = [
            name
            for name, rule in self._rules.items()
            if rule.is_required and name not in self._complete
        ]
        if missing:
            raise InvalidRequestError(f"The upload lacks the file {missing[0]}.", param=missing[0])
        if not self._is_finished:
            raise InvalidRequestError("The multipart body ends too early.")
        return dict(self._sizes)

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
        # one of our own names, never the client's text
        self._file = (self._folder / self._name).open("xb")

    def _expected_name(self) -> str:
        message = email.message.Message()
        message["content-disposition"] = self._disposition.decode("utf-8", "replace")
        names = (
            message.get_param("name", header="content-disposition"),
            message.get_param("filename", header="content-disposition"),
        )
        for name in names:
            if name in self._rules:
                return str(name)
        raise InvalidRequestError(
            f"The upload has an unexpected part; it takes {', '.join(self._rules)}."
        )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None, "data comes after a part's headers"
        self._sizes[self._name] += end - start
        cap = self._rules[self._name].max_bytes
        if self._sizes[self._name] > cap:
            raise PayloadTooLargeError(
                f"{self._name} is larger than {cap} bytes.", param=self._name
            )
        self._file.write(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        self.close()
        self._complete.add(self._name)

    def _on_end(self) -> None:
        self._is_finished = True


def _malformed(error: Exception) -> InvalidRequestError:
    return InvalidRequestError(f"The multipart body is malformed: {error}")
