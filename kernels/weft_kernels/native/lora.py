"""Adapters in place: the rows of a mixed batch against pages where the pool has them.

    y[t] += s[a(t)] * (x[t] A[a(t)]^T) B[a(t)]        (as in `weft_kernels.lora`)

Nothing is packed or copied: a slot is a table of addresses. Whoever builds one keeps the pages
where they are for as long as a batch may use the slot.

Legend: T rows, P (token, expert) pairs, K experts per token, E experts, I in, O out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_kernels.native.binding import PART, SEGMENT, SLOT, library
from weft_kernels.native.linear import NativeLinear


class Run(NamedTuple):
    """Rank rows of one site that lie together: the addresses of A `[num_ranks, I]` and B
    `[num_ranks, width]`, and where the site's columns begin among those of its input's sites.
    `num_ranks` is a multiple of 8; rows past the true rank are zero. The runs of a site follow each
    other. In the order of PART."""

    a: int
    b: int
    num_ranks: int
    column: int
    width: int
    scale: float


class SlotParts:
    """One adapter's runs by input, an input being the sites that read the same rows."""

    def __init__(self, parts: NDArray[np.void], counts: NDArray[np.int64]) -> None:
        """parts: PART `[N]`, input by input; counts: how many each input has."""
        wrong = (parts["num_ranks"] % 8 != 0) | (parts["num_ranks"] < 8)
        if wrong.any():
            num_ranks = parts["num_ranks"][wrong][0]
            raise ValueError(f"a run has {num_ranks} rank rows, not a multiple of 8")
        self._parts = parts
        self._starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        ends = np.concatenate(([0], np.cumsum(parts["num_ranks"])))[self._starts]
        self.max_ranks = int(np.diff(ends).max(initial=0))
        self.addresses = (self._parts.ctypes.data, self._starts.ctypes.data)

    @classmethod
    def of(cls, runs: Sequence[Sequence[Run]]) -> SlotParts:
        """`runs[i]` are those of input i."""
        parts = np.array([(*run, 0) for own in runs for run in own], dtype=PART)
        return cls(parts, np.array([len(own) for own in runs], dtype=np.int64))


class LoraRows:
    """Which rows of a batch use which slot; kept while the same rows run on the same slots."""

    def __init__(self, slots: Sequence[SlotParts], slot_of_T: Sequence[int]) -> None:
        """`slot_of_T[t]` is row t's slot, -1 for none."""
        self._slots = slots  # what the addresses point to
        self._table = np.array([slot.addresses for slot in slots], dtype=SLOT)
        self.slot_of_T = np.array(slot_of_T, dtype=np.int64)
        order = np.argsort(self.slot_of_T, kind="stable")
        self._rows = order[np.searchsorted(self.slot_of_T[order], 0) :].astype(np.int64)
        used, firsts, counts = np.unique(
            self.slot_of_T[self._rows], return_index=True, return_counts=True
        )
        self._segments = np.zeros(len(used), dtype=SEGMENT)
        self._segments["slot"], self._segments["first"] = used, firsts
        self._segments["num_rows"] = counts
        self._max_ranks = max((slots[slot].max_ranks for slot in used), default=0)
        self._h = torch.empty(len(self._rows) * self._max_ranks)
        self._call = _Call(self._table, self._segments, self._rows, self._h)

    @property
    def is_empty(self) -> bool:
        return len(self._segments) == 0

    def add_(self, y_TO: Tensor, x_TI: Tensor, input_index: int) -> None:
        """Add the adapters' part at one input to all columns of its sites, in place.

        y_TO `[T, O]` and x_TI `[T, I]`, float32, rows may be strided.
        """
        self._call.add_(y_TO, x_TI, input_index)

    def linear(
        self, x_TI: Tensor, weight: NativeLinear, bias_O: Tensor | None, input_index: int
    ) -> Tensor:
        """`y = x W + bias`, then the adapters: `[T, O]`. The same sums as those of `weight.apply`
        and `add_`, in less time: the base is short of arithmetic, the adapters of bandwidth."""
        return self._call.linear(x_TI, weight, bias_O, input_index)

    def for_pairs(self, expert_TK: Tensor, position_TK: Tensor, num_experts: int) -> PairRows:
        """The same for (token, expert) pairs: int64 `[T, K]` each pair's expert, and its row."""
        if expert_TK.dtype is not torch.int64 or position_TK.dtype is not torch.int64:
            raise ValueError("experts and positions of pairs are int64 numbers")
        num_tokens, top_k = expert_TK.shape
        num_pairs = len(self._rows) * top_k
        segments, rows = np.zeros(num_pairs, dtype=SEGMENT), np.empty(num_pairs, dtype=np.int64)
        expert_TK, position_TK = expert_TK.contiguous(), position_TK.contiguous()
        num_segments = library().expert_segments(
            expert_TK.data_ptr(), position_TK.data_ptr(), self.slot_of_T.ctypes.data, num_tokens,
            top_k, len(self._slots), num_experts, segments.ctypes.data, rows.ctypes.data,
        )  # fmt: skip
        h = torch.empty(num_pairs * self._max_ranks)
        return PairRows(_Call(self._table, segments[:num_segments], rows, h))


@dataclass(frozen=True, slots=True)
class PairRows:
    """Which (token, expert) pairs of one layer use which slot and expert."""

    _call: _Call

    def add_(self, y_PO: Tensor, x_PI: Tensor, first_input: int) -> None:
        """Add to pairs in place; the input of expert e is `first_input + e`."""
        self._call.add_(y_PO, x_PI, first_input)


class _Call:
    """The arguments that do not change from layer to layer; addresses are slow to ask for."""

    def __init__(
        self,
        table: NDArray[np.void],
        segments: NDArray[np.void],
        rows: NDArray[np.int64],
        h: Tensor,
    ) -> None:
        self._arrays = (table, segments, rows, h)  # what the addresses point to
        self._table, self._segments = table.ctypes.data, segments.ctypes.data
        self._rows, self._num_segments = rows.ctypes.data, len(segments)
        self._h = h.data_ptr()

    def linear(
        self, x: Tensor, weight: NativeLinear, bias: Tensor | None, input_index: int
    ) -> Tensor:
        y, arguments = weight.arguments(x, bias)
        library().adapted_linear(
            *arguments, self._table, input_index, self._segments, self._num_segments, self._rows,
            self._h, torch.get_num_threads(),
        )  # fmt: skip
        return y

    def add_(self, y: Tensor, x: Tensor, input_index: int) -> None:
        for tensor in (x, y):
            is_plain = tensor.dtype is torch.float32 and tensor.device.type == "cpu"
            if not is_plain or tensor.stride(1) != 1:
                raise ValueError("the native adapters take float32 rows on the CPU")
        library().lora(
            self._table, input_index, self._segments, self._num_segments, self._rows,
            x.data_ptr(), x.stride(0), x.shape[1], y.data_ptr(), y.stride(0), self._h,
            torch.get_num_threads(),
        )  # fmt: skip
