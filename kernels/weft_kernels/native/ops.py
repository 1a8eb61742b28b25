"""Norm, activation, rotation and attention in C++; semantics as in the torch operators of the same
names. All tensors are float32 on the CPU; ValueError for one that is not contiguous.

Legend: T rows, B requests that decode, H hidden, I inner width, N KV heads, G query heads per KV
head, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_kernels.attention import (
    AttentionBucket,
    Int8Cache,
    create_attention_buckets,
    paged_attention,
)
from weft_kernels.native.binding import library

Buckets = tuple[AttentionBucket, ...]

# the C++ functions keep a head on their stack
MAX_HEAD_DIM = 1024
# up to so many tokens a prompt's queries are faster one by one than gathered, padded and masked
MAX_SHORT = 512


def check_plain(*tensors: Tensor) -> None:
    """ValueError for a tensor that the C++ would read wrong."""
    for x in tensors:
        if x.dtype is not torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
            raise ValueError(
                f"the native operators take contiguous float32 tensors on the CPU, not {x.dtype} "
                f"on {x.device} with strides {x.stride()}"
            )


def _check_heads(k_cache: Tensor) -> None:
    dim = k_cache.shape[-1]
    if dim > MAX_HEAD_DIM:
        raise ValueError(f"heads of {dim} are wider than {MAX_HEAD_DIM}")


def add_rms_norm_(x_TH: Tensor, delta_TH: Tensor | None, weight_H: Tensor, eps: float) -> Tensor:
    """`x += delta`, in place, then `y = x / sqrt(mean(x^2, -1) + eps) * weight`: `[T, H]`."""
    check_plain(x_TH, weight_H, *(() if delta_TH is None else (delta_TH,)))
    y_TH = torch.empty_like(x_TH)
    library().add_rms_norm(
        x_TH.data_ptr(), 0 if delta_TH is None else delta_TH.data_ptr(), weight_H.data_ptr(),
        y_TH.data_ptr(), *x_TH.shape, eps, torch.get_num_threads(),
    )  # fmt: skip
    return y_TH


def silu_mul(gate_up: Tensor) -> Tensor:
    """`y = silu(g) * u` with `[g | u] = gate_up`: `[T, 2 I]` to `[T, I]`."""
    check_plain(gate_up)
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = gate_up.new_empty(num_rows, width)
    library().silu_mul(gate_up.data_ptr(), y.data_ptr(), num_rows, width, torch.get_num_threads())
    return y


def greedy(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the largest of each row: int64 `[N]`; whether the row is finite: bool `[N]`."""
    check_plain(logits_NV)
    tokens_N = torch.empty(len(logits_NV), dtype=torch.int64)
    finite_N = torch.empty(len(logits_NV), dtype=torch.bool)
    library().greedy(
        logits_NV.data_ptr(), *logits_NV.shape, tokens_N.data_ptr(), finite_N.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return tokens_N, finite_N


def rotate_and_write(
    qkv: Tensor, norms: Tensor | None, eps: float, rotary: Tensor, kv_slots_T: Tensor,
    num_heads: int, k_cache: Tensor, v_cache: Tensor,
) -> Tensor:  # fmt: skip
    """q and k normalised per head and rotated, k and v written to their slots; returns q.

    qkv `[T, (N G + 2 N) D]`; norms `[N G + N, D]` or None; rotary `[T, 2, D / 2]`; kv_slots_T int64
    `[T]`; num_heads = N G; caches `[num_blocks, block_size, N, D]`; q `[T, N G, D]`.
    """
    check_plain(qkv, rotary, k_cache, v_cache, *(() if norms is None else (norms,)))
    _check_heads(k_cache)
    if kv_slots_T.dtype is not torch.int64 or not kv_slots_T.is_contiguous():
        raise ValueError("the slots of the KV cache are contiguous int64 numbers")
    num_kv_heads, dim = k_cache.shape[2:]
    q = qkv.new_empty(qkv.shape[0], num_heads, dim)
    library().rotate_and_write(
        qkv.data_ptr(), 0 if norms is None else norms.data_ptr(), eps, rotary.data_ptr(),
        kv_slots_T.data_ptr(), len(qkv), num_heads, num_kv_heads, dim, q.data_ptr(),
        k_cache.data_ptr(), v_cache.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return q


class Attention:
    """A step's attention: requests with one query, and the queries of short contexts one by one,
    read their blocks in place; the others, and all on an int8 cache, run in torch's padded
    buckets."""

    def __init__(
        self,
        spans: Sequence[tuple[int, int, int]],
        tables: Sequence[Sequence[int]],
        block_size: int,
        windows: Sequence[int | None],
    ) -> None:
        """Arguments as `create_attention_buckets` takes them."""
        self._spans, self._all_tables = spans, tables
        self.block_size, self._windows = block_size, windows
        single = [i for i, span in enumerate(spans) if span[1] == 1 or span[2] <= MAX_SHORT]
        many = [i for i, span in enumerate(spans) if span[1] != 1 and span[2] > MAX_SHORT]
        self._rows, self._lengths, self._tables = _single_queries(
            [spans[i] for i in single], _pad([tables[i] for i in single])
        )
        arrays = (self._rows, self._tables, self._lengths)
        # of the queries' rows, tables and lengths; slow to ask for in each layer
        self.addresses = [array.ctypes.data for array in arrays]
        self._buckets = self._create_buckets(many)
        self._all_buckets: Buckets | None = None

    @property
    def is_in_place(self) -> bool:
        """All queries read their blocks in place, where the cache is not int8."""
        return not self._buckets

    @property
    def num_queries(self) -> int:
        return len(self._rows)

    @property
    def table_width(self) -> int:
        return int(self._tables.shape[1])

    def _create_buckets(self, ids: Sequence[int]) -> Buckets:
        return create_attention_buckets(
            [self._spans[i] for i in ids], [self._all_tables[i] for i in ids], self.block_size,
            torch.device("cpu"), self._windows,
        )  # fmt: skip

    def attend(
        self,
        q_TND: Tensor,
        k_cache: Tensor | Int8Cache,
        v_cache: Tensor | Int8Cache,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """As `paged_attention`."""
        if isinstance(k_cache, Int8Cache) or isinstance(v_cache, Int8Cache):
            if self._all_buckets is None:
                self._all_buckets = self._create_buckets(range(len(self._spans)))
            return paged_attention(q_TND, k_cache, v_cache, self._all_buckets, scale, window)
        out_TND = (
            paged_attention(q_TND, k_cache, v_cache, self._buckets, scale, window)
            if self._buckets
            else torch.empty_like(q_TND)
        )
        if len(self._rows):
            self._decode(q_TND, k_cache, v_cache, scale, window, out_TND)
        return out_TND

    def _decode(
        self, q_TND: Tensor, k_cache: Tensor, v_cache: Tensor, scale: float, window: int | None,
        out_TND: Tensor,
    ) -> None:  # fmt: skip
        check_plain(q_TND, k_cache, v_cache, out_TND)
        _check_heads(k_cache)
        num_heads, dim = q_TND.shape[1:]
        library().paged_decode(
            q_TND.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), *self.addresses,
            self.num_queries, self.table_width, self.block_size, num_heads, k_cache.shape[2], dim,
            window or 0, scale, out_TND.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip


def _single_queries(
    spans: Sequence[tuple[int, int, int]], tables: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Each query's row, the tokens that it sees, and its request's blocks."""
    first_rows, counts, lengths = np.array(spans, dtype=np.int64).reshape(-1, 3).T
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows, seen = np.repeat(first_rows, counts) + nth, np.repeat(lengths - counts + 1, counts) + nth
    return rows, seen, np.repeat(tables, counts, axis=0)


def _pad(tables: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """`[B, longest]`, block 0 where a table is shorter."""
    padded = np.zeros((len(tables), max(map(len, tables), default=0)), dtype=np.int64)
    for row, blocks in zip(padded, tables, strict=True):
        row[: len(blocks)] = blocks
    return padded
