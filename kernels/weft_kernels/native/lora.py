"""Adapters in place: the rows of a mixed batch against pages where the pool has them.

    y[t] = m (x[t] W + s (x[t] A^T) B) + bias + adapter_bias        (as in `weft_kernels.lora`)

with A, B, s, m and adapter_bias of row t's adapter; where it has no m or adapter_bias, m = 1 and
nothing is added, and where no adapter of the batch has any, nothing is done for them.

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

from weft_kernels.native.binding import PART, SEGMENT, SLOT, VECTORS, library
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


class SiteVectors(NamedTuple):
    """The addresses of one site's row scale and bias `[width]`, 0 for none, and where its columns
    begin. In the order of VECTORS."""

    row_scale: int
    bias: int
    column: int
    width: int


class SlotParts:
    """One adapter's runs by input, an input being the sites that read the same rows, and its
    vectors."""

    def __init__(
        self,
        parts: NDArray[np.void],
        counts: NDArray[np.int64],
        vectors: NDArray[np.void],
        vector_counts: NDArray[np.int64],
    ) -> None:
        """parts: PART `[N]`, input by input; counts: how many each input has; vectors: VECTORS
        `[V]` likewise."""
        wrong = (parts["num_ranks"] % 8 != 0) | (parts["num_ranks"] < 8)
        if wrong.any():
            num_ranks = parts["num_ranks"][wrong][0]
            raise ValueError(f"a run has {num_ranks} rank rows, not a multiple of 8")
        self._parts = parts
        self._starts = _starts(counts)
        ends = np.concatenate(([0], np.cumsum(parts["num_ranks"])))[self._starts]
        self.max_ranks = int(np.diff(ends).max(initial=0))
        self._vectors, self._vector_starts = vectors, _starts(vector_counts)
        arrays = (self._parts, self._starts, self._vectors, self._vector_starts)
        addresses = [array.ctypes.data for array in arrays]
        self.addresses = tuple(addresses if self.has_vectors else [*addresses[:2], 0, 0])

    @property
    def has_vectors(self) -> bool:
        return len(self._vectors) > 0

    @classmethod
    def of(
        cls, runs: Sequence[Sequence[Run]], vectors: Sequence[Sequence[SiteVectors]] = ()
    ) -> SlotParts:
        """`runs[i]` and `vectors[i]` are those of input i; no vectors at all: none at any."""
        parts = np.array([(*run, 0) for own in runs for run in own], dtype=PART)
        rows = np.array([tuple(v) for own in vectors for v in own], dtype=VECTORS)
        counts, vector_counts = (
            np.array([len(own) for own in lists], dtype=np.int64) for lists in (runs, vectors)
        )
        return cls(parts, counts, rows, vector_counts)


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


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
        self._has_vectors = any(slots[slot].has_vectors for slot in used)
        self._h = torch.empty(len(self._rows) * self._max_ranks)
        self.call = AdapterCall(self._table, self._segments, self._rows, self._h, self._has_vectors)

    @property
    def is_empty(self) -> bool:
        return len(self._segments) == 0

    def add_(
        self, y_TO: Tensor, x_TI: Tensor, input_index: int, bias_O: Tensor | None = None
    ) -> None:
        """Make y, which comes in as x W + bias, the adapted one at all columns of one input.

        y_TO `[T, O]` and x_TI `[T, I]`, float32, rows may be strided; bias_O is the base's, to
        which row scales do not apply.
        """
        self.call.add_(y_TO, x_TI, input_index, bias_O)

    def linear(
        self, x_TI: Tensor, weight: NativeLinear, bias_O: Tensor | None, input_index: int
    ) -> Tensor:
        """`y = x W + bias`, then the adapters: `[T, O]`. The same sums as those of `weight.apply`
        and `add_`, in less time: the base is short of arithmetic, the adapters of bandwidth."""
        return self.call.linear(x_TI, weight, bias_O, input_index)

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
        return PairRows(
            AdapterCall(self._table, segments[:num_segments], rows, h, self._has_vectors)
        )


@dataclass(frozen=True, slots=True)
class PairRows:
    """Which (token, expert) pairs of one layer use which slot and expert."""

    _call: AdapterCall

    def add_(self, y_PO: Tensor, x_PI: Tensor, first_input: int) -> None:
        """As `LoraRows.add_` for pairs; the input of expert e is `first_input + e`."""
        self._call.add_(y_PO, x_PI, first_input)


class AdapterCall:
    """The arguments that do not change from layer to layer; addresses are slow to ask for."""

    def __init__(
        self,
        table: NDArray[np.void],
        segments: NDArray[np.void],
        rows: NDArray[np.int64],
        h: Tensor,
        has_vectors: bool,
    ) -> None:
        self._arrays = (table, segments, rows, h)  # what the addresses point to
        self.table, self.segments = table.ctypes.data, segments.ctypes.data
        self.rows, self.num_segments = rows.ctypes.data, len(segments)
        self.h, self.has_vectors = h.data_ptr(), has_vectors

    def linear(
        self, x: Tensor, weight: NativeLinear, bias: Tensor | None, input_index: int
    ) -> Tensor:
        y, arguments = weight.arguments(x, bias)
        library().adapted_linear(
            *arguments, self.table, input_index, self.segments, self.num_segments, self.rows,
            self.h, self.has_vectors, torch.get_num_threads(),
        )  # fmt: skip
        return y

    def add_(self, y: Tensor, x: Tensor, input_index: int, bias: Tensor | None = None) -> None:
        for tensor in (x, y):
            is_plain = tensor.dtype is torch.float32 and tensor.device.type == "cpu"
            if not is_plain or tensor.stride(1) != 1:
                raise ValueError("the native adapters take float32 rows on the CPU")
        library().lora(
            self.table, input_index, self.segments, self.num_segments, self.rows,
            x.data_ptr(), x.stride(0), x.shape[1], y.data_ptr(), y.stride(0), self.h,
            0 if bias is None else bias.data_ptr(), self.has_vectors, torch.get_num_threads(),
        )  # fmt: skip
