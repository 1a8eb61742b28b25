"""Matrices of few bits, made from dense ones, and their dense values again.

    int8: w[i, o] = s[o] q[i, o],             s = max |w[:, o]| / 127
    int4: w[i, o] = m[g, o] + s[g, o] q[i, o],  m = min w[g, o],  s = (max w[g, o] - m) / 15

with g = i // G, the group of G input rows, and q the nearest whole number. Only the weights are
rounded: products are computed in the dtype of s and m, which is the dense matrix's.

Legend: I in, O out, G rows of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

QUANTIZATIONS = ("int8", "int4")
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """Matrices `[..., I, O]`.

    data: int8 `[..., I, O]`, or for int4 uint8 `[..., I / 2, O]`, row i in the low four bits and
    row i + I / 2 in the high ones. scale: `[..., 1, O]`, or `[..., I / G, O]`; minimum likewise,
    None for int8.
    """

    data: Tensor
    scale: Tensor
    minimum: Tensor | None

    @property
    def num_out(self) -> int:
        return self.data.shape[-1]

    @property
    def num_bytes(self) -> int:
        minimum = 0 if self.minimum is None else self.minimum.nbytes
        return self.data.nbytes + self.scale.nbytes + minimum

    def dense(self) -> Tensor:
        """The values `[..., I, O]`, a new tensor of the scale's dtype."""
        if self.minimum is None:
            return self.data.to(self.scale.dtype).mul_(self.scale)
        *batch, half, num_out = self.data.shape
        out = torch.empty(
            (*batch, 2, half, num_out), dtype=self.scale.dtype, device=self.data.device
        )
        out[..., 0, :, :] = self.data & 15
        out[..., 1, :, :] = self.data >> 4
        groups = out.view(*self.scale.shape[:-1], -1, num_out)
        torch.addcmul(self.minimum.unsqueeze(-2), groups, self.scale.unsqueeze(-2), out=groups)
        return out.view(*batch, 2 * half, num_out)

    def mm(self, x_TI: Tensor, out_TO: Tensor) -> None:
        """`out = x w` for one matrix; x_TI `[T, I]`, out_TO `[T, O]`, rows may be strided."""
        if self.minimum is None and x_TI.dtype is not torch.float16:
            # fewer products than scaling w, but float16 would overflow on 127 x
            torch.mm(x_TI, self.data.to(x_TI.dtype), out=out_TO)
            out_TO *= self.scale
        else:
            torch.mm(x_TI, self.dense(), out=out_TO)

    def select(self, index: Tensor) -> QuantizedMatrix:
        """The matrices at `index` int64 `[N]` of the first dimension."""
        minimum = None if self.minimum is None else self.minimum.index_select(0, index)
        return QuantizedMatrix(
            self.data.index_select(0, index), self.scale.index_select(0, index), minimum
        )


def group_size(num_in: int) -> int:
    """The largest of 128, 64 and 32 rows that divides `num_in`; ValueError when none does."""
    for size in GROUP_SIZES:
        if num_in % size == 0:
            return size
    raise ValueError(f"int4 needs inputs in groups of {GROUP_SIZES[-1]}, and there are {num_in}")


def quantized_bytes(num_in: int, num_out: int, dtype: torch.dtype, quantization: str) -> int:
    """`num_bytes` of one matrix `[num_in, num_out]` of `dtype`."""
    if quantization == "int8":
        return num_in * num_out + num_out * dtype.itemsize
    return num_in * num_out // 2 + 2 * (num_in // group_size(num_in)) * num_out * dtype.itemsize


def quantize(w: Tensor, quantization: str) -> QuantizedMatrix:
    """Round `w` `[..., I, O]` to "int8" or "int4".

    ValueError for another word, for values that are not finite and, in int4, where no group size
    divides I.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}")
    if not w.isfinite().all():
        raise ValueError("a weight that is not finite cannot be quantized")
    return _quantize_int8(w) if quantization == "int8" else _quantize_int4(w)


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)


def _quantize_int8(w: Tensor) -> QuantizedMatrix:
    wide = w.float()
    scale = (wide.abs().amax(-2, keepdim=True) / 127).to(w.dtype)
    # against the scale as it is stored, which may be rounded
    q = (wide / _nonzero(scale.float())).round_().clamp_(-127, 127)
    return QuantizedMatrix(q.to(torch.int8), scale, None)


def _quantize_int4(w: Tensor) -> QuantizedMatrix:
    *batch, num_in, num_out = w.shape
    size = group_size(num_in)
    groups = w.float().reshape(*batch, num_in // size, size, num_out)
    least = groups.amin(-2)
    minimum = least.to(w.dtype)
    scale = ((groups.amax(-2) - least) / 15).to(w.dtype)
    steps = _nonzero(scale.float()).unsqueeze(-2)
    q = ((groups - minimum.float().unsqueeze(-2)) / steps).round_().clamp_(0, 15)
    low, high = q.to(torch.uint8).view(*batch, 2, num_in // 2, num_out).unbind(-3)
    return QuantizedMatrix(low | (high << 4), scale, minimum)
