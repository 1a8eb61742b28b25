"""The header of a safetensors file, read strictly and before anything is allocated for its data.

Knows the file format only: which names and shapes make sense is for `format`. Nothing here trusts
a length, an offset or a shape until it agrees with the size of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weft_adapters.faults import AdapterFaultError, Fault, shown
from weft_adapters.strict_json import parse_strict

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8
MAX_NAME_CHARS = 512
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_PREFIX_BYTES = 8
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
    if not data.startswith(b"{"):
        raise _refusal("header_invalid", "The safetensors header does not start with an object.")
    try:
        entries = parse_strict(data, max_depth=4)
    except ValueError as error:
        raise _refusal("header_invalid", f"The safetensors header is refused. {error}") from None
    if not isinstance(entries, dict):
        raise _refusal("header_invalid", "The safetensors header is not an object.")
    _check_metadata(entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        message = f"The file has {len(entries)} tensors; at most {MAX_TENSORS} are read."
        raise _refusal("too_many_tensors", message)
    data_start = _PREFIX_BYTES + len(data)
    tensors = {name: _tensor_info(name, entry, data_start) for name, entry in entries.items()}
    _check_coverage(tensors, data_start, num_bytes)
    return Header(tensors, len(data), num_bytes)


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _refusal("header_invalid", "__metadata__ must map strings to strings.")


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
    return TensorInfo(name, dtype, tuple(shape), data_start + start, data_start + stop)


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
