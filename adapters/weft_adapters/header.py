"""The header of a safetensors file, read strictly and before anything is allocated for its data.

Knows the file format only: which names and shapes make sense is for `format`. Nothing here trusts
a length, an offset or a shape until it agrees with the size of the file. The header is JSON, but no
JSON library is given all of it, since a few bytes of JSON can become many of objects: it is read
tensor by tensor, each within its own limits.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weft_adapters.faults import AdapterFaultError, Fault, shown
from weft_adapters.strict_json import parse_strict

MAX_HEADER_BYTES = 16 * 2**20
MAX_METADATA_BYTES = 256 * 2**10
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8
MAX_NAME_CHARS = 512
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_PREFIX_BYTES = 8
# what a tensor costs in memory here and until it is in the report, rounded up; a file may have so
# many that all of them cost no more than its own size and 8 MiB
_MEMORY_PER_TENSOR_BYTES = 2048
_FREE_MEMORY_BYTES = 8 * 2**20

# possessive and bounded, so that no text makes the matcher go back or remember much
_SPACE = rb"[ \t\n\r]*+"
_STRING = rb'"(?:[^"\\\x00-\x1f]|\\.){0,%d}+"'
_OPEN = re.compile(rb"\{" + _SPACE)
_NEXT = re.compile(_SPACE + rb"([,}])" + _SPACE)
_END = re.compile(_SPACE + rb"\Z")
_KEY = re.compile(rb"(" + _STRING % (12 * MAX_NAME_CHARS) + rb")" + _SPACE + rb":" + _SPACE)
_ENTRY = re.compile(rb"\{[^{}]{0,1024}+\}")
_METADATA = re.compile(
    rb"\{" + _SPACE
    + rb"(?:" + _STRING % MAX_METADATA_BYTES + _SPACE + rb":" + _SPACE
    + _STRING % MAX_METADATA_BYTES + _SPACE + rb",?+" + _SPACE + rb")*+\}"
)  # fmt: skip
_MAGICS = (
    (b"PK\x03\x04", "a zip archive (what torch.save writes)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its bytes are `[start, stop)` counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return self.stop - self.start

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: `tensors` by name, covering the file without gap or overlap."""

    tensors: Mapping[str, TensorInfo]
    num_header_bytes: int
    num_bytes: int


def read_header(file: BinaryIO, num_bytes: int) -> Header:
    """The header of the file that `file` reads from its start, `num_bytes` long.

    Reads at most 16 MiB and allocates nothing for the tensors. Raises AdapterFaultError.
    """
    prefix = file.read(32)
    try:
        length = _header_length(prefix, num_bytes)
        file.seek(_PREFIX_BYTES)
        data = file.read(length)
        if len(data) != length:
            raise _refusal("header_truncated", "The file ends inside its safetensors header.")
        return _parse_header(data, num_bytes)
    except AdapterFaultError as error:
        kind = next((kind for magic, kind in _MAGICS if prefix.startswith(magic)), None)
        if kind is None:
            raise
        message = f"The file is not safetensors: it looks like {kind}. Export it as safetensors."
        raise AdapterFaultError((Fault("not_safetensors", message), *error.faults)) from None


def read_header_path(path: Path) -> Header:
    """`read_header` of the file at `path`."""
    with path.open("rb") as file:
        return read_header(file, path.stat().st_size)


def _refusal(code: str, message: str, tensor: str | None = None) -> AdapterFaultError:
    return AdapterFaultError((Fault(code, message, tensor),))


def _header_length(prefix: bytes, num_bytes: int) -> int:
    if num_bytes < _PREFIX_BYTES or len(prefix) < _PREFIX_BYTES:
        raise _refusal("header_truncated", f"The file has only {num_bytes} bytes.")
    length = int.from_bytes(prefix[:_PREFIX_BYTES], "little")
    if length == 0:
        raise _refusal("header_empty", "The safetensors header has a length of zero.")
    if length > MAX_HEADER_BYTES:
        message = (
            f"The safetensors header claims {length} bytes; at most {MAX_HEADER_BYTES} are read."
        )
        raise _refusal("header_too_large", message)
    if length > num_bytes - _PREFIX_BYTES:
        message = f"The header claims {length} bytes, but the file has only {num_bytes} in all."
        raise _refusal("header_truncated", message)
    return length


def _parse_header(data: bytes, num_bytes: int) -> Header:
    data_start = _PREFIX_BYTES + len(data)
    tensors: dict[str, TensorInfo] = {}
    max_tensors = _max_tensors(num_bytes)
    has_metadata = False
    opening = _OPEN.match(data)
    if opening is None:
        raise _refusal("header_invalid", "The safetensors header does not start with an object.")
    position, end = opening.end(), b","
    if data[position : position + 1] == b"}":
        position, end = position + 1, b"}"
    while end == b",":
        key = _KEY.match(data, position)
        if key is None:
            raise _invalid(f"There is no tensor's name at byte {position}")
        if key[1] == b'"__metadata__"':
            if has_metadata:
                raise _invalid('The key "__metadata__" appears twice')
            position, has_metadata = _check_metadata(data, key.end()), True
        else:
            info, position = _read_tensor(data, key, data_start)
            if info.name in tensors:
                raise _invalid(f"The key {shown(info.name)} appears twice")
            tensors[info.name] = info
        if len(tensors) > max_tensors:
            message = f"A file of {num_bytes} bytes has over {max_tensors} tensors."
            raise _refusal("too_many_tensors", message)
        following = _NEXT.match(data, position)
        if following is None:
            raise _invalid(f"There is neither a comma nor an end at byte {position}")
        position, end = following.end(), following[1]
    if _END.match(data, position) is None:
        raise _invalid(f"Something follows its end at byte {position}")
    _check_coverage(tensors, data_start, num_bytes)
    return Header(tensors, len(data), num_bytes)


def _max_tensors(num_bytes: int) -> int:
    return min(MAX_TENSORS, (num_bytes + _FREE_MEMORY_BYTES) // _MEMORY_PER_TENSOR_BYTES)


def _invalid(what: str) -> AdapterFaultError:
    return _refusal("header_invalid", f"The safetensors header is refused. {what}.")


def _check_metadata(data: bytes, position: int) -> int:
    """Where it ends; what it says is used nowhere."""
    match = _METADATA.match(data, position, position + MAX_METADATA_BYTES)
    if match is None:
        what = f"__metadata__ must map strings to strings, in at most {MAX_METADATA_BYTES} bytes"
        raise _invalid(what)
    _parse_part(match, 0, max_depth=1)
    return match.end()


def _parse_part(match: re.Match[bytes], group: int, max_depth: int) -> object:
    try:
        return parse_strict(match[group], max_depth=max_depth)
    except ValueError as error:
        message = f"The safetensors header is refused, from byte {match.start(group)} on. {error}"
        raise _refusal("header_invalid", message) from None


def _read_tensor(data: bytes, key: re.Match[bytes], data_start: int) -> tuple[TensorInfo, int]:
    """The tensor whose key is matched, and where its entry ends."""
    name = _parse_part(key, 1, max_depth=0)
    assert isinstance(name, str), "a JSON string"
    entry = _ENTRY.match(data, key.end())
    if entry is None:
        message = f"The entry of {shown(name)} must hold exactly dtype, shape and data_offsets."
        raise _refusal("header_invalid", message, name)
    return _tensor_info(name, _parse_part(entry, 0, max_depth=2), data_start), entry.end()


def _tensor_info(name: str, entry: object, data_start: int) -> TensorInfo:
    if len(name) > MAX_NAME_CHARS:
        raise _refusal("header_invalid", f"A tensor's name has {len(name)} characters.", name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        message = f"The entry of {shown(name)} must hold exactly dtype, shape and data_offsets."
        raise _refusal("header_invalid", message, name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        message = f"{shown(name)} has dtype {shown(str(dtype))}; supported are F32, F16 and BF16."
        raise _refusal("unsupported_dtype", message, name)
    if not _is_counts(shape) or len(shape) > MAX_DIMENSIONS:
        message = f"{shown(name)} has a shape that is not a short list of sizes."
        raise _refusal("header_invalid", message, name)
    if not _is_counts(offsets) or len(offsets) != 2:
        message = f"{shown(name)} has data_offsets that are not two positions."
        raise _refusal("header_invalid", message, name)
    start, stop = offsets
    if math.prod(shape) * DTYPE_BYTES[dtype] != stop - start:
        message = (
            f"{shown(name)} claims {stop - start} bytes, which its shape and dtype do not make."
        )
        raise _refusal("bytes_mismatch", message, name)
    return TensorInfo(name, sys.intern(dtype), tuple(shape), data_start + start, data_start + stop)


def _is_counts(value: object) -> bool:
    """True for a list of integers from 0 below 2**63; a bool is not an integer here."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_coverage(tensors: Mapping[str, TensorInfo], data_start: int, num_bytes: int) -> None:
    position = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.stop)):
        if info.start != position:
            what = "overlaps the tensor before it" if info.start < position else "leaves a gap"
            raise _refusal("offsets_invalid", f"The data of {shown(info.name)} {what}.", info.name)
        if info.stop > num_bytes:
            message = f"The data of {shown(info.name)} reaches past the end of the file."
            raise _refusal("file_truncated", message, info.name)
        position = info.stop
    if position != num_bytes:
        message = f"The file has {num_bytes - position} bytes that belong to no tensor."
        raise _refusal("trailing_bytes", message)
