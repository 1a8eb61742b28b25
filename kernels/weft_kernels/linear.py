"""The base's linear weights, in whatever layout is fastest where they are.

    y = x W + bias

On a CPU with oneDNN the weight is packed once into oneDNN's own blocked layout; for batches of 8 to
64 rows this is 2 to 3 times faster than a plain GEMM. Elsewhere it is a dense `[in, out]` matrix.
(The native kernels have a layout of their own.)

A quantized weight is dequantized in every call. On a CPU that is done by slices of columns which
stay in the L2 cache, so that memory is read once, as int8 or int4: int8 in float32 is as fast as
oneDNN's packed float32 from 1 to 512 rows, int4 takes 1.1 (128 rows) to 2 times (1 row) as long.
torch's own `_weight_int8pack_mm` and `_weight_int4pack_mm_for_cpu` are scalar loops in float32, 3
to 40 and 8 to 100 times slower; torchao 0.18 ships no CPU kernels, so it would call these. On CUDA
the whole matrix is dequantized: memory is what is gained there.

Nobody but this file knows which layout a weight has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_kernels.quantized import QuantizedMatrix, quantize

# oneDNN chooses the blocking by the batch it is told; this one was best or near it from 1 to 512
_PACKED_FOR_ROWS = 128
# 768 KiB of float32, and the operands of the GEMM, fit the 1 to 2 MiB of a core's L2 cache
_SLICE_ELEMENTS = 192 * 1024
_MIN_SLICE_COLUMNS = 128


class LinearWeight(ABC):
    """W of one linear (or several side by side that share their input): `num_in` to `num_out`."""

    num_in: int
    num_out: int

    @abstractmethod
    def apply(self, x_TI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """x_TI `[T, num_in]` -> `[T, num_out]`, both in the weight's dtype."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix `[num_in, num_out]`: a copy where it is packed or quantized."""

    def columns(self, first: int, stop: int) -> Tensor:
        """`[num_in, stop - first]` of the matrix, likewise."""
        return self.dense()[:, first:stop]

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of the elements and their scales; what a layout pads them by is not counted."""


@dataclass(frozen=True)
class TorchLinear(LinearWeight):
    """Packed by oneDNN, quantized in slices of columns, or dense."""

    num_in: int
    num_out: int
    is_packed: bool
    _data: Tensor | tuple[QuantizedMatrix, ...]  # slices of columns, side by side

    def apply(self, x_TI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        if self.is_packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(
                x_TI, self._data, bias_O, "none", [], ""
            )
            return out
        if isinstance(self._data, tuple):
            return self._apply_slices(self._data, x_TI, bias_O)
        return x_TI @ self._data if bias_O is None else torch.addmm(bias_O, x_TI, self._data)

    def _apply_slices(
        self, slices: tuple[QuantizedMatrix, ...], x_TI: Tensor, bias_O: Tensor | None
    ) -> Tensor:
        y_TO = x_TI.new_empty(x_TI.shape[0], self.num_out)
        for w, out in zip(slices, torch.split(y_TO, slices[0].num_out, dim=1), strict=True):
            w.mm(x_TI, out)
        return y_TO if bias_O is None else y_TO.add_(bias_O)

    def dense(self) -> Tensor:
        return self.columns(0, self.num_out)

    def columns(self, first: int, stop: int) -> Tensor:
        if not isinstance(self._data, tuple):
            whole = self._data.to_dense().t() if self.is_packed else self._data
            return whole[:, first:stop]
        width = self._data[0].num_out
        slices = self._data[first // width : -(-stop // width)]
        start = first // width * width
        return torch.cat([w.dense() for w in slices], dim=1)[:, first - start : stop - start]

    @property
    def num_bytes(self) -> int:
        if isinstance(self._data, tuple):
            return sum(w.num_bytes for w in self._data)
        return self.num_in * self.num_out * self._data.dtype.itemsize


def can_pack(w_IO: Tensor) -> bool:
    """oneDNN packs float32 and bfloat16 on a CPU that it has kernels for."""
    if w_IO.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    is_fast_bfloat16 = w_IO.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return w_IO.dtype is torch.float32 or is_fast_bfloat16


def as_linear_weight(w_IO: Tensor) -> TorchLinear:
    """`w_IO` `[num_in, num_out]` where it lies, in no other layout: nothing is copied."""
    num_in, num_out = w_IO.shape
    return TorchLinear(num_in, num_out, is_packed=False, _data=w_IO)


def create_linear_weight(w_IO: Tensor, quantization: str | None = None) -> TorchLinear:
    """Lay out `w_IO` `[num_in, num_out]` for its device, rounded to "int8" or "int4" if asked to.

    ValueError as `quantize` says.
    """
    num_in, num_out = w_IO.shape
    if quantization is not None:
        width = num_out
        if w_IO.device.type == "cpu":
            width = max(_MIN_SLICE_COLUMNS, _SLICE_ELEMENTS // num_in // 64 * 64)
        slices = tuple(quantize(part, quantization) for part in torch.split(w_IO, width, dim=1))
        return TorchLinear(num_in, num_out, is_packed=False, _data=slices)
    if not can_pack(w_IO):
        return TorchLinear(num_in, num_out, is_packed=False, _data=w_IO.contiguous())
    rows = w_IO.t().contiguous()
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(rows, _PACKED_FOR_ROWS)
    return TorchLinear(num_in, num_out, is_packed=True, _data=packed)
