"""Tensor data as numpy arrays, by memory map or from bytes, after the header was checked."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from weft_adapters.header import Header

Float32 = NDArray[np.float32]
_CHUNK = 1 << 20


def _no_pause() -> None:
    """Go on at once."""


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Of one tensor's values: is each a finite number, the largest magnitude, the root mean square.

    Of values that are not all finite only that is said.
    """

    is_finite: bool
    max_abs: float
    rms: float


class TensorFile:
    """An open tensor file; `read` copies, so that nothing outlives the map."""

    def __init__(self, path: Path, header: Header) -> None:
        self._header = header
        with path.open("rb") as file:
            if file.seek(0, 2) != header.num_bytes:
                raise ValueError(f"{path.name} changed its size since its header was read")
            self._map: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._pause: Callable[[], None] = _no_pause

    @classmethod
    def of_bytes(
        cls, data: bytes, header: Header, pause: Callable[[], None] | None = None
    ) -> TensorFile:
        """A file that was read whole: what was verified is what is used, whatever becomes of it.
        `pause` is called after each piece that was worked on."""
        assert len(data) == header.num_bytes, "the header was read from these bytes"
        file = cls.__new__(cls)
        file._header, file._map, file._pause = header, data, pause or _no_pause
        return file

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if isinstance(self._map, mmap.mmap):
            self._map.close()

    def chunks(self, name: str) -> Iterator[bytes]:
        """The tensor's bytes as stored, a piece at a time: a tensor may be the whole file."""
        info = self._header.tensors[name]
        for start in range(info.start, info.stop, _CHUNK):
            yield self._map[start : min(start + _CHUNK, info.stop)]
            self._pause()

    def read(self, name: str) -> Float32:
        """The tensor as float32 of its own shape; half formats are widened exactly."""
        info = self._header.tensors[name]
        values = np.empty(info.num_elements, dtype=np.float32)
        filled = 0
        for chunk in self.chunks(name):
            part = _widen(chunk, info.dtype)
            values[filled : filled + part.size] = part
            filled += part.size
        return values.reshape(info.shape)

    def read_rows(self, name: str, first: int, stop: int) -> Float32:
        """Rows `[first, stop)` of a matrix, likewise."""
        info = self._header.tensors[name]
        num_rows, width = info.shape
        row_bytes = info.num_bytes // num_rows
        part = self._map[info.start + first * row_bytes : info.start + stop * row_bytes]
        return _widen(part, info.dtype).reshape(stop - first, width)

    def are_equal(self, first: str, second: str) -> bool:
        """Of the same bytes."""
        pairs = zip_longest(self.chunks(first), self.chunks(second))
        return all(one == other for one, other in pairs)

    def stats(self, name: str) -> TensorStats:
        """Read once and in pieces."""
        info = self._header.tensors[name]
        max_abs, sum_of_squares = 0.0, 0.0
        for chunk in self.chunks(name):
            part = _widen(chunk, info.dtype)
            # squares of finite float32 values are finite in float64, and so is their sum
            with np.errstate(invalid="ignore"):
                sum_of_squares += float(np.square(part, dtype=np.float64).sum())
            if not math.isfinite(sum_of_squares):
                return TensorStats(False, math.inf, math.inf)
            max_abs = max(max_abs, float(part.max()), -float(part.min()))
        return TensorStats(True, max_abs, math.sqrt(sum_of_squares / max(1, info.num_elements)))


def _widen(data: bytes, dtype: str) -> Float32:
    """A view of `data` where it is float32 already."""
    if dtype == "F32":
        return np.frombuffer(data, dtype="<f4")
    if dtype == "F16":
        return np.frombuffer(data, dtype="<f2").astype(np.float32)
    assert dtype == "BF16", "the header allows three dtypes"
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
