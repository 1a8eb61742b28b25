"""The compiled operators as Python functions of addresses and numbers.

Nothing is checked here; `ops.py` and `lora.py` do that. OpenMP's symbols resolve to the library
that torch has loaded, so that there is one team of threads: more teams than cores slow each other
down.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch  # noqa: F401  loads its OpenMP first

from weft_kernels.native.build import build

# the C++ structs of src/lora.cpp, field by field
PART = np.dtype(
    [("a", "u8"), ("b", "u8"), ("num_ranks", "i8"), ("column", "i8"), ("width", "i8"),
     ("scale", "f4"), ("padding", "i4")]
)  # fmt: skip
VECTORS = np.dtype([("row_scale", "u8"), ("bias", "u8"), ("column", "i8"), ("width", "i8")])
SLOT = np.dtype([("parts", "u8"), ("starts", "u8"), ("vectors", "u8"), ("vector_starts", "u8")])
SEGMENT = np.dtype([("slot", "i8"), ("input", "i8"), ("first", "i8"), ("num_rows", "i8")])

_TYPES = {
    "p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float,
}  # fmt: skip


class Library:
    """p: an address, l: int64, i: int32, f: float32."""

    def __init__(self, path: str) -> None:
        dll = ctypes.CDLL(path)

        def function(name: str, arguments: str, result: str | None = None) -> Any:
            found = getattr(dll, name)
            found.argtypes = [_TYPES[code] for code in arguments]
            found.restype = _TYPES[result] if result else None
            return found

        self.add_rms_norm = function("weft_add_rms_norm", "ppppllfi")
        self.silu_mul = function("weft_silu_mul", "pplli")
        self.rotate_and_write = function("weft_rotate_and_write", "ppfppllllpppi")
        self.paged_decode = function("weft_paged_decode", "pppppplllllllfpi")
        self.pack_linear = function("weft_pack_linear", "pllp")
        self.linear = function("weft_linear", "plpplllpi")
        self.greedy = function("weft_greedy", "pllppi")
        self.lora = function("weft_lora", "plplppllplppii")
        self.adapted_linear = function("weft_adapted_linear", "plpplllpplplppii")
        self.layers = function("weft_layers", "pplllppppp")
        self.expert_segments = function("weft_expert_segments", "pppllllpp", "l")


@cache
def library() -> Library:
    """Built and loaded once a process; NativeBuildError where it cannot be built."""
    return Library(str(build()))
