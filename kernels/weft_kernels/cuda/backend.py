"""The CUDA devices' backend: Triton where it saves a launch or a pass over memory.

The base's linears stay torch's, which are cuBLAS's there. Nothing waits for the device, so that a
step can be captured as a graph; what a first call copies or compiles is there from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weft_kernels import backend
from weft_kernels.attention import Int8Cache
from weft_kernels.cuda.attention import paged_attention
from weft_kernels.cuda.attention_plan import (
    AttentionMetadata,
    create_attention_metadata,
    create_attention_planner,
)
from weft_kernels.cuda.expert_lora import ExpertLora
from weft_kernels.cuda.kv_write import split_cache, write_kv
from weft_kernels.cuda.moe import moe
from weft_kernels.cuda.rms_norm import rms_norm
from weft_kernels.cuda.rotary import rotate_heads
from weft_kernels.cuda.silu_mul import silu_mul
from weft_kernels.moe import ExpertWeights, QuantizedExperts


@dataclass(frozen=True, slots=True)
class PlannedAttention:
    """A step whose work is on the device already."""

    metadata: AttentionMetadata

    def attend(
        self,
        q_TND: Tensor,
        k_cache: Tensor | Int8Cache,
        v_cache: Tensor | Int8Cache,
        scale: float,
        window: int | None,
    ) -> Tensor:
        return paged_attention(q_TND, k_cache, v_cache, self.metadata, scale, window)


@dataclass(frozen=True, slots=True)
class _Spans:
    """A step that is planned when its first layer says how many heads there are."""

    spans: Sequence[tuple[int, int, int]]
    tables: Sequence[Sequence[int]]
    block_size: int
    device: torch.device
    windows: Sequence[int | None]
    _planned: dict[tuple[int, int], AttentionMetadata] = field(default_factory=dict)

    def attend(
        self,
        q_TND: Tensor,
        k_cache: Tensor | Int8Cache,
        v_cache: Tensor | Int8Cache,
        scale: float,
        window: int | None,
    ) -> Tensor:
        data = split_cache(k_cache)[0]
        num_kv_heads, head_dim = data.shape[2:]
        groups = q_TND.shape[1] // num_kv_heads
        metadata = self._planned.get((num_kv_heads, groups))
        if metadata is None:
            planner = create_attention_planner(
                num_kv_heads, groups, head_dim, data.dtype, self.windows, self.block_size
            )
            metadata = create_attention_metadata(planner, self.spans, self.tables, self.device)
            self._planned[num_kv_heads, groups] = metadata
        return paged_attention(q_TND, k_cache, v_cache, metadata, scale, window)


class CudaBackend(backend.Backend):
    """bfloat16, float16 and float32."""

    name = "triton"
    reads_page_tables = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rows: dict[int, Tensor] = {}

    def create_attention(
        self,
        spans: Sequence[tuple[int, int, int]],
        tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device,
        windows: Sequence[int | None],
    ) -> backend.Attention:
        return _Spans(spans, tables, block_size, device, tuple(dict.fromkeys(windows)))

    def add_rms_norm_(
        self, x_TH: Tensor, delta_TH: Tensor | None, weight_H: Tensor, eps: float
    ) -> Tensor:
        return rms_norm(x_TH, weight_H, eps, delta_TH)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return silu_mul(gate_up)

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
        """q and k are rotated where they are in `qkv`; rows with a negative slot are padding."""
        num_kv_heads, head_dim = k_cache.shape[2:]
        num_qk = num_heads + num_kv_heads
        heads = qkv.view(len(qkv), -1, head_dim)
        rows_T = self._rows_up_to(len(qkv))
        rotate_heads(heads[:, :num_qk], rows_T, rotary, norms, eps)
        write_kv(k_cache, v_cache, heads[:, num_heads:num_qk], heads[:, num_qk:], kv_slots_T)
        return heads[:, :num_heads]

    def _rows_up_to(self, num_rows: int) -> Tensor:
        """0 .. num_rows - 1: each row's place among the rows of a step's cos and sin. What was
        given out once stays where it is, because captured graphs read it."""
        size = 1 << max(num_rows - 1, 0).bit_length()
        if size not in self._rows:
            self._rows[size] = torch.arange(size, device=self._device)
        return self._rows[size][:num_rows]

    def moe(
        self,
        x_TH: Tensor,
        weights: ExpertWeights | QuantizedExperts,
        top_k: int,
        renormalize: bool,
        adapters: Any = None,
        num_tokens: Tensor | None = None,
        logits_TE: Tensor | None = None,
    ) -> Tensor:
        """Quantized experts are dequantized here, all of a layer."""
        if adapters is not None and not isinstance(adapters, ExpertLora):
            raise ValueError(f"adapters of experts are read through page tables, not {adapters!r}")
        if isinstance(weights, QuantizedExperts):
            weights = ExpertWeights(
                weights.router_HE, weights.gate_up_EHF.dense(), weights.down_EFH.dense()
            )
        return moe(
            x_TH, weights, top_k, renormalize, adapters, num_tokens=num_tokens, logits_TE=logits_TE
        )
