"""Decoder layers in one call of C++; see `weft_kernels.layers` and src/layers.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weft_kernels.attention import Int8Cache
from weft_kernels.layers import LayerRows, LayerShape, LayerSpec, LayerStep
from weft_kernels.linear import LinearWeight
from weft_kernels.native.binding import library
from weft_kernels.native.linear import NativeLinear
from weft_kernels.native.lora import LoraRows
from weft_kernels.native.ops import MAX_HEAD_DIM, Attention, check_plain

Caches = Sequence[Tensor | Int8Cache]

# the C++ structs of src/layers.cpp, field by field
_LAYER = np.dtype(
    [(name, "u8") for name in (
        "input_norm", "qkv", "qkv_bias", "head_norms", "o", "o_bias", "post_norm", "gate_up",
        "gate_up_bias", "down", "down_bias",
    )]
    + [("inner", "i8"), ("window", "i8"), ("k_cache", "u8"), ("v_cache", "u8")]
)  # fmt: skip


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("hidden", "heads", "kv_heads", "dim", "block_size")),
        ("eps", ctypes.c_float), ("scale", ctypes.c_float),
    ]  # fmt: skip


class _Rows(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in (
            "num_rows", "query_rows", "tables", "lengths", "num_queries", "table_width", "slots",
            "segments", "num_segments", "adapted_rows", "shrunk", "has_vectors",
        )
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("all", _Rows), ("last", _Rows),
        *((name, ctypes.c_int64) for name in (
            "asked", "rotary", "kv_slots", "inputs", "scratch", "threads",
        )),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerAdapters:
    """A step's adapters: which rows use what; layer_inputs: int64 `[L, 4]`, the inputs of qkv, o,
    gate_up and down, -1 for one that is not there."""

    rows: LoraRows
    layer_inputs: NDArray[np.int64]


class NativeLayers:
    """The layers of one model. ValueError for one that these operators cannot compute."""

    def __init__(self, layers: Sequence[LayerSpec], shape: LayerShape) -> None:
        if shape.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"heads of {shape.head_dim} are wider than {MAX_HEAD_DIM}")
        self.shape, self.num_layers = shape, len(layers)
        self._layers = tuple(layers)  # what the addresses point to
        self.table = np.array([_layer(layer) for layer in layers], dtype=_LAYER)
        # layers that go together end with one that has no dense half
        ends = [i + 1 for i, layer in enumerate(layers) if layer.dense is None] + [len(layers)]
        self.stops = [next(end for end in ends if end > i) for i in range(len(layers))]
        self.is_dense = [layer.dense is not None for layer in layers]
        heads = 4 * shape.num_heads + 2 * shape.num_kv_heads
        self._scratch_width = max(heads * shape.head_dim, 3 * int(self.table["inner"].max()))
        self._caches: tuple[Caches, Caches] | None = None
        self._room = torch.empty(0)

    def start(self, step: LayerStep) -> NativeRun | None:
        """See `FusedLayers`: None where keys and values are int8, or where a prompt is so long that
        torch attends."""
        for rows in (step.rows,) if step.last is None else (step.rows, step.last):
            if not isinstance(rows.adapters, LayerAdapters):
                return None
            if not isinstance(rows.attention, Attention) or not rows.attention.is_in_place:
                return None
        if any(isinstance(cache, Int8Cache) for cache in (*step.k_caches, *step.v_caches)):
            return None
        self._use(step.k_caches, step.v_caches)
        return NativeRun(self, step)

    def _use(self, k_caches: Caches, v_caches: Caches) -> None:
        """Note where the caches are."""
        if self._caches is not None and self._caches[0] is k_caches and self._caches[1] is v_caches:
            return
        shape = (self.shape.num_kv_heads, self.shape.head_dim)
        for name, caches in (("k_cache", k_caches), ("v_cache", v_caches)):
            for i, cache in enumerate(caches):
                assert isinstance(cache, Tensor)
                check_plain(cache)
                if cache.shape[2:] != shape:
                    raise ValueError(f"caches of heads {tuple(cache.shape[2:])}, not {shape}")
                self.table[name][i] = cache.data_ptr()
        self._caches = (k_caches, v_caches)

    def room(self, num_rows: int) -> tuple[Tensor, Tensor, int]:
        """h and out `[T, H]`, and the address of the scratch."""
        hidden = self.shape.hidden_size
        width = 2 * hidden + self._scratch_width
        if len(self._room) < num_rows * width:
            self._room = torch.empty(num_rows * width)
        h, out, scratch = self._room[: num_rows * width].split_with_sizes(
            [num_rows * hidden, num_rows * hidden, num_rows * self._scratch_width]
        )
        return h.view(num_rows, hidden), out.view(num_rows, hidden), scratch.data_ptr()


class NativeRun:
    """See `StepRun`."""

    def __init__(self, layers: NativeLayers, step: LayerStep) -> None:
        self._layers, self._step = layers, step
        shape, num_rows = layers.shape, step.rows.num_rows
        check_plain(step.rotary)
        if step.rotary.shape != (num_rows, 2, shape.head_dim // 2):
            raise ValueError(f"rotary of {tuple(step.rotary.shape)} for {num_rows} rows")
        asked = step.asked if step.last is not None else None
        for numbers in (step.kv_slots_T, *(() if asked is None else (asked,))):
            if numbers.dtype is not torch.int64 or not numbers.is_contiguous():
                raise ValueError("the slots of the KV cache are contiguous int64 numbers")
        self._h, self._out, scratch = layers.room(num_rows)
        self._num_left = num_rows if step.last is None else step.last.num_rows
        self._struct = _Step(
            _rows(step.rows), _rows(step.rows if step.last is None else step.last),
            0 if asked is None else asked.data_ptr(), step.rotary.data_ptr(),
            step.kv_slots_T.data_ptr(), step.rows.adapters.layer_inputs.ctypes.data, scratch,
            torch.get_num_threads(),
        )  # fmt: skip
        self._shape = _Shape(
            shape.hidden_size, shape.num_heads, shape.num_kv_heads, shape.head_dim,
            step.rows.attention.block_size, shape.eps, shape.scale,
        )  # fmt: skip

    def layers(
        self, first: int, x_TH: Tensor, delta_TH: Tensor | None
    ) -> tuple[int, Tensor, Tensor]:
        """See `StepRun`."""
        layers, stop = self._layers, self._layers.stops[first]
        for rows_TH in (x_TH,) if delta_TH is None else (x_TH, delta_TH):
            check_plain(rows_TH)
            if rows_TH.shape != self._h.shape:
                raise ValueError(f"rows {tuple(rows_TH.shape)}, not {tuple(self._h.shape)}")
        library().layers(
            ctypes.addressof(self._shape), layers.table.ctypes.data, layers.num_layers, first, stop,
            ctypes.addressof(self._struct), x_TH.data_ptr(),
            0 if delta_TH is None else delta_TH.data_ptr(), self._h.data_ptr(),
            self._out.data_ptr(),
        )  # fmt: skip
        y_TH = self._out if layers.is_dense[stop - 1] else self._h
        if stop < layers.num_layers:
            return stop, x_TH, y_TH
        return stop, x_TH[: self._num_left], y_TH[: self._num_left]


def _layer(layer: LayerSpec) -> tuple[int, ...]:
    """The fields of `_LAYER`."""
    dense = layer.dense
    check_plain(layer.input_norm, layer.post_norm)
    head_norms = _address(layer.head_norms)
    mlp = (0, 0, 0, 0, 0)
    if dense is not None:
        mlp = (
            _panels(dense.gate_up), _address(dense.gate_up_bias), _panels(dense.down),
            _address(dense.down_bias), dense.down.num_in,
        )  # fmt: skip
    return (
        layer.input_norm.data_ptr(), _panels(layer.qkv), _address(layer.qkv_bias), head_norms,
        _panels(layer.o), _address(layer.o_bias), layer.post_norm.data_ptr(), *mlp,
        layer.window or 0, 0, 0,
    )  # fmt: skip


def _panels(weight: LinearWeight) -> int:
    if not isinstance(weight, NativeLinear):
        raise ValueError(f"layers of native linears go in one call, not of {type(weight).__name__}")
    return weight.address


def _address(tensor: Tensor | None) -> int:
    """0 for none."""
    if tensor is None:
        return 0
    check_plain(tensor)
    return tensor.data_ptr()


def _rows(rows: LayerRows) -> _Rows:
    """The step's struct; the arrays that its addresses point to are the step's."""
    attention, call = rows.attention, rows.adapters.rows.call
    return _Rows(
        rows.num_rows, *attention.addresses, attention.num_queries, attention.table_width,
        call.table, call.segments, call.num_segments, call.rows, call.h, call.has_vectors,
    )  # fmt: skip
