"""One decoder for every family: tokens of a mixed batch in, logits of the rows asked for out.

It knows rows, positions and KV slots; neither requests nor tenants, nor which adapter is whose.

Legend: T rows, H hidden, N KV heads, D head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.engine.model.config import ModelConfig
from weft.engine.model.weights import DenseWeights, LayerWeights, ModelWeights
from weft_kernels.activation import silu_mul
from weft_kernels.attention import AttentionBucket, paged_attention, write_kv
from weft_kernels.lora import LoraBatch, PackedSites, adapted_linear
from weft_kernels.moe import moe
from weft_kernels.norm import rms_norm
from weft_kernels.rotary import apply_rotary, create_rotary_table

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")


@dataclass(frozen=True, slots=True)
class KVCache:
    """Per layer: k and v `[num_blocks, block_size, N, D]`; block 0 is the null block, all zero."""

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class AdapterBatch:
    """A step's adapters: `sites[layer, projection]` by padded rank, and which rows use what."""

    sites: Mapping[tuple[int, str], PackedSites]
    lora: LoraBatch

    def at(self, layer: int, projections: Sequence[str]) -> list[PackedSites]:
        return [self.sites.get((layer, projection), {}) for projection in projections]


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step.

    tokens_T, positions_T, kv_slots_T: int64; logit_rows: int64, the rows whose next token is asked
    for; attention: see `weft_kernels.attention`.
    """

    tokens_T: Tensor
    positions_T: Tensor
    kv_slots_T: Tensor
    logit_rows: Tensor
    attention: Sequence[AttentionBucket]
    adapters: AdapterBatch


class Decoder:
    """Pre-norm decoder with grouped-query attention, q/k norm, rotary positions and SwiGLU."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, max_model_len: int) -> None:
        self.config = config
        self.weights = weights
        table = create_rotary_table(
            max_model_len, config.head_dim, config.rope_theta, weights.embed_VH.device
        )
        self._rotary_table = table.to(weights.embed_VH.dtype)
        self._scale = config.head_dim**-0.5

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: KVCache) -> Tensor:
        """Write the rows' keys and values to `kv` and return float32 logits `[num rows, V]`."""
        rotary = self._rotary_table.index_select(0, batch.positions_T)
        x_TH = self.weights.embed_VH.index_select(0, batch.tokens_T)
        eps = self.config.rms_norm_eps
        for i, layer in enumerate(self.weights.layers):
            h_TH = rms_norm(x_TH, layer.input_norm, eps)
            x_TH = x_TH + self._attention(i, layer, h_TH, rotary, batch, kv)
            h_TH = rms_norm(x_TH, layer.post_norm, eps)
            x_TH = x_TH + self._mlp(i, layer, h_TH, batch.adapters)
        x_TH = rms_norm(x_TH.index_select(0, batch.logit_rows), self.weights.norm, eps)
        return self.weights.head.apply(x_TH).float()

    def _attention(
        self, i: int, layer: LayerWeights, x_TH: Tensor, rotary: Tensor, batch: Batch, kv: KVCache
    ) -> Tensor:
        config, adapters = self.config, batch.adapters
        widths = [config.q_size, config.kv_size, config.kv_size]
        qkv = adapted_linear(
            x_TH, layer.qkv, layer.qkv_bias, adapters.at(i, QKV), widths, adapters.lora
        )
        heads = (len(x_TH), -1, config.head_dim)
        q, k, v = (part.view(heads) for part in torch.split(qkv, widths, dim=1))
        q = apply_rotary(rms_norm(q, layer.q_norm, config.rms_norm_eps), rotary)
        k = apply_rotary(rms_norm(k, layer.k_norm, config.rms_norm_eps), rotary)
        write_kv(kv.k[i], k, batch.kv_slots_T)
        write_kv(kv.v[i], v, batch.kv_slots_T)
        o = paged_attention(q, kv.k[i], kv.v[i], batch.attention, self._scale).flatten(1)
        return adapted_linear(
            o, layer.o, layer.o_bias, adapters.at(i, ("o_proj",)), (config.hidden_size,),
            adapters.lora,
        )  # fmt: skip

    def _mlp(self, i: int, layer: LayerWeights, x_TH: Tensor, adapters: AdapterBatch) -> Tensor:
        config, mlp = self.config, layer.mlp
        if not isinstance(mlp, DenseWeights):
            sites = adapters.at(i, (*GATE_UP, "down_proj"))
            return moe(
                x_TH, mlp, config.num_experts_per_tok, config.norm_topk_prob, sites, adapters.lora
            )
        inner = config.intermediate_size
        gate_up = adapted_linear(
            x_TH, mlp.gate_up, None, adapters.at(i, GATE_UP), (inner, inner), adapters.lora
        )
        return adapted_linear(
            silu_mul(gate_up), mlp.down, None, adapters.at(i, ("down_proj",)),
            (config.hidden_size,), adapters.lora,
        )  # fmt: skip
