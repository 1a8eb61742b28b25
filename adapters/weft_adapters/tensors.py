"""Tensor data as numpy arrays, by memory map or from bytes, after the header was checked."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from weft_adapters.header import Header

Float32 = NDArray[np.float32]
_CHUNK = 1 << 20


class TensorFile:
    """An open tensor file; `read` copies, so that nothing outlives the map."""

    def __init__(self, path: Path, header: Header) -> None:
        self._header = header
        with path.open("rb") as file:
            if file.seek(0, 2) != header.num_bytes:
                raise ValueError(f"{path.name} changed its size since its header was read")
            self._map: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @classmethod
    def of_bytes(cls, data: bytes, header: Header) -> TensorFile:
        """A file that was read whole: what was verified is what is used, whatever becomes of it."""
        assert len(data) == header.num_bytes, "the header was read from these bytes"
        file = cls.__new__(cls)
        file._header, file._map = header, data
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

    def raw(self, name: str) -> bytes:
        """The tensor's bytes as stored."""
        info = self._header.tensors[name]
        return self._map[info.start : info.stop]

    def read(self, name: str) -> Float32:
        """The tensor as float32 of its own shape; half formats are widened exactly."""
        info = self._header.tensors[name]
        return _widen(self.raw(name), info.dtype).reshape(info.shape)

    def is_finite(self, name: str) -> bool:
        """No NaN and no infinity, checked in chunks."""
        info = self._header.tensors[name]
        for start in range(info.start, info.stop, _CHUNK):
            part = self._map[start : min(start + _CHUNK, info.stop)]
            if not np.isfinite(_widen(part, info.dtype)).all():
                return False
        return True

    def is_zero(self, name: str) -> bool:
        return not np.any(self.read(name))


def _widen(data: bytes, dtype: str) -> Float32:
    if dtype == "F32":
        return np.frombuffer(data, dtype="<f4").copy()
    if dtype == "F16":
        return np.frombuffer(data, dtype="<f2").astype(np.float32)
    assert dtype == "BF16", "the header allows three dtypes"
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
