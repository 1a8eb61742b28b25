"""The base's linear weights in panels of 32 columns, float32, for the native kernels.

    y = x W + bias

For 1 to 64 rows this takes 0.5 to 0.95 of the time of oneDNN's packed weights, which were made for
larger batches; for more it is as fast, so that there need be no second copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weft_kernels.linear import LinearWeight
from weft_kernels.memory import Arena
from weft_kernels.native.binding import library

_PANEL = 32


@dataclass(frozen=True)
class NativeLinear(LinearWeight):
    """panels `[ceil(num_out / 32), num_in, 32]`, columns past the last zero."""

    num_in: int
    num_out: int
    _panels: Tensor

    def apply(self, x_TI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        y_TO, arguments = self.arguments(x_TI, bias_O)
        library().linear(*arguments, torch.get_num_threads())
        return y_TO

    def arguments(self, x_TI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
        """Room for the result, and what the compiled operators take of this linear."""
        is_plain = x_TI.dtype is torch.float32 and x_TI.device.type == "cpu"
        if not is_plain or x_TI.shape[1] != self.num_in or x_TI.stride(1) != 1:
            raise ValueError(
                f"a native linear of {self.num_in} inputs takes float32 rows of as many on the "
                f"CPU, not {x_TI.dtype} {tuple(x_TI.shape)} on {x_TI.device}"
            )
        y_TO = x_TI.new_empty(x_TI.shape[0], self.num_out)
        return y_TO, (
            x_TI.data_ptr(), x_TI.stride(0), self._panels.data_ptr(),
            0 if bias_O is None else bias_O.data_ptr(), x_TI.shape[0], self.num_in, self.num_out,
            y_TO.data_ptr(),
        )  # fmt: skip

    @property
    def address(self) -> int:
        """Of the packed weights, for the compiled operators."""
        return self._panels.data_ptr()

    def dense(self) -> Tensor:
        return self.columns(0, self.num_out)

    def columns(self, first: int, stop: int) -> Tensor:
        panels = self._panels[first // _PANEL : -(-stop // _PANEL)]
        start = first // _PANEL * _PANEL
        columns = panels.transpose(0, 1).reshape(self.num_in, -1)
        return columns[:, first - start : stop - start]

    @property
    def num_bytes(self) -> int:
        return self.num_in * self.num_out * 4


def create_native_linear(w_IO: Tensor, arena: Arena) -> NativeLinear:
    """Pack a float32 matrix `[num_in, num_out]`."""
    num_in, num_out = w_IO.shape
    panels = arena.empty(-(-num_out // _PANEL), num_in, _PANEL, dtype=torch.float32)
    w_IO = w_IO.contiguous()
    library().pack_linear(w_IO.data_ptr(), num_in, num_out, panels.data_ptr())
    return NativeLinear(num_in, num_out, panels)
