"""The base's linear weights, in whatever layout is fastest where they are.

    y = x W + bias

On a CPU with oneDNN the weight is packed once into oneDNN's own blocked layout; for batches of 8 to
64 rows this is 2 to 3 times faster than a plain GEMM. Elsewhere it is a dense `[in, out]` matrix.
Nobody but this file knows which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# oneDNN chooses the blocking by the batch it is told; this one was best or near it from 1 to 512
_PACKED_FOR_ROWS = 128


@dataclass(frozen=True, slots=True)
class LinearWeight:
    """W of one linear (or several side by side that share their input): `num_in` to `num_out`."""

    num_in: int
    num_out: int
    is_packed: bool
    _data: Tensor

    def apply(self, x_TI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """x_TI `[T, num_in]` -> `[T, num_out]`, both in the weight's dtype."""
        if self.is_packed:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(
                x_TI, self._data, bias_O, "none", [], ""
            )
            return out
        return x_TI @ self._data if bias_O is None else torch.addmm(bias_O, x_TI, self._data)

    def dense(self) -> Tensor:
        """The matrix `[num_in, num_out]`: a copy where it is packed."""
        return self._data.to_dense().t() if self.is_packed else self._data


def can_pack(w_IO: Tensor) -> bool:
    """oneDNN packs float32 and bfloat16 on a CPU that it has kernels for."""
    if w_IO.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    is_fast_bfloat16 = w_IO.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return w_IO.dtype is torch.float32 or is_fast_bfloat16


def create_linear_weight(w_IO: Tensor) -> LinearWeight:
    """Lay out `w_IO` `[num_in, num_out]` for its device."""
    num_in, num_out = w_IO.shape
    if not can_pack(w_IO):
        return LinearWeight(num_in, num_out, is_packed=False, _data=w_IO.contiguous())
    rows = w_IO.t().contiguous()
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(rows, _PACKED_FOR_ROWS)
    return LinearWeight(num_in, num_out, is_packed=True, _data=packed)
