"""An upload by its parts, so that each can be changed before they are put together."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DTYPES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass
class Tensor:
    """`data` holds the bytes of `shape` in `dtype`, unless something was done to them."""

    dtype: str
    shape: list[int]
    data: bytes

    @classmethod
    def of(cls, values: Any) -> Tensor:
        array = np.ascontiguousarray(values, dtype="<f4")
        return cls("F32", list(array.shape), array.tobytes())

    def values(self) -> Any:
        """float32; only of a tensor that nothing was done to."""
        if self.dtype == "BF16":
            return (np.frombuffer(self.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(self.data, "<f4" if self.dtype == "F32" else "<f2").astype(np.float32)

    def set_values(self, values: Any, dtype: str) -> None:
        values = np.ascontiguousarray(values, dtype=np.float32)
        with np.errstate(over="ignore"):
            data = {
                "F32": lambda: values.astype("<f4"),
                "F16": lambda: values.astype("<f2"),
                "BF16": lambda: (values.view(np.uint32) >> 16).astype("<u2"),
            }[dtype]()
        self.dtype, self.data = dtype, data.tobytes()


@dataclass
class Upload:
    """The parts of an upload, and how they will be put together."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    entries: dict[str, Any] = field(default_factory=dict)
    """Of the header, for those that are not as the tensor says."""
    text_edits: list[Callable[[bytes], bytes]] = field(default_factory=list)
    """Of the config's text."""
    header_edits: list[Callable[[bytes], bytes]] = field(default_factory=list)
    file_edits: list[Callable[[bytes], bytes]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def config_bytes(self) -> bytes:
        text = json.dumps(self.config).encode("utf-8", "surrogatepass")
        for edit in self.text_edits:
            text = edit(text)
        return text

    def file_bytes(self) -> bytes:
        entries: dict[str, Any] = {}
        position = 0
        for name, tensor in self.tensors.items():
            end = position + len(tensor.data)
            entries[name] = {
                "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [position, end],
            }  # fmt: skip
            position = end
        header = json.dumps(entries | self.entries).encode("utf-8", "surrogatepass")
        for edit in self.header_edits:
            header = edit(header)
        data = b"".join(tensor.data for tensor in self.tensors.values())
        file = struct.pack("<Q", len(header)) + header + data
        for edit in self.file_edits:
            file = edit(file)
        return file
