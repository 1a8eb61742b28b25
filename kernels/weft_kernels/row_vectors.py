"""Row scales and biases of a mixed batch, on outputs that have all else.

    y[t] = m[a(t)] * (y[t] - bias) + bias + b[a(t)]

with `a(t)` the adapter of row t, m its row scale (DoRA, Liu et al. 2024) and b its own bias; y
comes in as x W + bias and the adapters' low-rank part. Rows without either are not touched.

Legend: T rows of the batch, N rows whose adapters have vectors, S slots, O out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SlotVectors:
    """m and b by slot, `[S, O]` of one float dtype; 1 and 0 where a slot's adapter has none. Those
    of experts have them as second dimension."""

    scales_SO: Tensor
    biases_SO: Tensor

    def with_base(self, bias_O: Tensor | None) -> SlotVectors:
        """With `(1 - m) bias + b` for b: what is left to add to `m y`."""
        if bias_O is None:
            return self
        biases_SO = torch.addcmul(self.biases_SO + bias_O, self.scales_SO, bias_O, value=-1)
        return SlotVectors(self.scales_SO, biases_SO)

    def by_expert(self) -> SlotVectors:
        """Of experts: by slot and expert, `[S * E, O]`."""
        return SlotVectors(self.scales_SO.flatten(0, 1), self.biases_SO.flatten(0, 1))


@dataclass(frozen=True, slots=True)
class VectorRows:
    """rows_N: int64, each once; slots_N: int64, their slots."""

    rows_N: Tensor
    slots_N: Tensor


def apply_vectors_(y_TO: Tensor, rows: VectorRows, vectors: SlotVectors) -> None:
    """In place, rows may be strided; `vectors` as `with_base` gives them."""
    out_NO = torch.addcmul(
        vectors.biases_SO.index_select(0, rows.slots_N),
        y_TO.index_select(0, rows.rows_N),
        vectors.scales_SO.index_select(0, rows.slots_N),
    )
    y_TO.index_copy_(0, rows.rows_N, out_NO)
