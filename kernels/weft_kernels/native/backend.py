"""The CPU's backend: C++ where it is faster than what torch composes, float32 only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weft_kernels import backend
from weft_kernels.attention import Int8Cache
from weft_kernels.layers import FusedLayers, LayerShape, LayerSpec
from weft_kernels.linear import LinearWeight
from weft_kernels.memory import Arena
from weft_kernels.native import ops
from weft_kernels.native.binding import library
from weft_kernels.native.layers import NativeLayers
from weft_kernels.native.linear import NativeLinear, create_native_linear


class NativeBackend(backend.Backend):
    """NativeBuildError where the library cannot be built."""

    name = "native"
    reads_pages = True

    def __init__(self) -> None:
        library()
        self._arena = Arena()

    def create_attention(
        self,
        spans: Sequence[tuple[int, int, int]],
        tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device,
        windows: Sequence[int | None],
    ) -> backend.Attention:
        return ops.Attention(spans, tables, block_size, windows)

    def create_linear_weight(self, w_IO: Tensor, quantization: str | None = None) -> LinearWeight:
        if quantization is not None:
            return super().create_linear_weight(w_IO, quantization)
        return create_native_linear(w_IO, self._arena)

    def fuse_layers(self, layers: Sequence[LayerSpec], shape: LayerShape) -> FusedLayers | None:
        if not all(
            isinstance(linear, NativeLinear) for layer in layers for linear in layer.linears
        ):
            return None  # quantized
        return NativeLayers(layers, shape)

    def add_rms_norm_(
        self, x_TH: Tensor, delta_TH: Tensor | None, weight_H: Tensor, eps: float
    ) -> Tensor:
        return ops.add_rms_norm_(x_TH, delta_TH, weight_H, eps)

    def greedy(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        return ops.greedy(logits_NV)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return ops.silu_mul(gate_up)

    def rotate_and_write(
        self,
        qkv: Tensor,
        norms: Tensor | None,
        eps: float,
        rotary: Tensor,
        kv_slots_T: Tensor,
        num_heads: int,
        k_cache: Tensor | Int8Cache,
        v_cache: Tensor | Int8Cache,
    ) -> Tensor:
        if isinstance(k_cache, Int8Cache) or isinstance(v_cache, Int8Cache):
            return super().rotate_and_write(
                qkv, norms, eps, rotary, kv_slots_T, num_heads, k_cache, v_cache
            )
        return ops.rotate_and_write(
            qkv, norms, eps, rotary, kv_slots_T, num_heads, k_cache, v_cache
        )
