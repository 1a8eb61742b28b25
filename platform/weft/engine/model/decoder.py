"""One decoder for every family: tokens of a mixed batch in, logits of the rows asked for out.

It knows rows, positions and KV slots; neither requests nor tenants, nor which adapter is whose.

Legend: T rows, H hidden, N KV heads, D head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weft.engine.model.config import ModelConfig
from weft.engine.model.weights import DenseWeights, LayerWeights, ModelWeights, SharedExpert
from weft_kernels.activation import silu_mul
from weft_kernels.attention import AttentionBucket, Int8Cache, paged_attention, write_kv
from weft_kernels.lora import LoraBatch, PackedSites, Term, adapted_linear, create_terms
from weft_kernels.moe import moe
from weft_kernels.norm import rms_norm
from weft_kernels.rotary import apply_rotary, create_rotary_table

QKV = ("q_proj", "k_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
Names = tuple[str, ...]
Terms = tuple[Term, ...]
SHARED_MLP = ("shared_gate_proj", "shared_up_proj", "shared_down_proj")


@dataclass(frozen=True, slots=True)
class KVCache:
    """Per layer: k and v `[num_blocks, block_size, N, D]`; block 0 is the null block, all zero."""

    k: tuple[Tensor | Int8Cache, ...]
    v: tuple[Tensor | Int8Cache, ...]

    def tensors(self) -> list[Tensor]:
        """All tensors that hold something for each block, which is their first dimension."""
        tensors: list[Tensor] = []
        for cache in (*self.k, *self.v):
            tensors += [cache.data, cache.scale] if isinstance(cache, Int8Cache) else [cache]
        return tensors


@dataclass(frozen=True, slots=True)
class AdapterBatch:
    """A step's adapters: `sites[layer, projection]` by padded rank, and which rows use what."""

    sites: Mapping[tuple[int, str], PackedSites]
    lora: LoraBatch
    _terms: dict[tuple[int, tuple[str, ...]], Terms] = field(default_factory=dict)

    def at(self, layer: int, projections: tuple[str, ...]) -> list[PackedSites]:
        return [self.sites.get((layer, projection), {}) for projection in projections]

    def terms(self, layer: int, projections: tuple[str, ...]) -> Terms:
        """What the batch adds at sites that share an input; worked out once."""
        if not self.lora.groups:
            return ()
        terms = self._terms.get((layer, projections))
        if terms is None:
            terms = create_terms(self.at(layer, projections), self.lora)
            self._terms[layer, projections] = terms
        return terms


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
    """Pre-norm decoder: grouped-query attention on rotary positions, SwiGLU or experts of it.

    What families add (biases, norms on q and k, windows, a shared expert) is in the config's flags;
    `windows` are the distinct ones that a batch's attention is created for.
    """

    def __init__(self, config: ModelConfig, weights: ModelWeights, max_model_len: int) -> None:
        self.config = config
        self.weights = weights
        table = create_rotary_table(
            max_model_len, config.head_dim, config.rope, weights.embed_VH.device
        )
        self._rotary_table = table.to(weights.embed_VH.dtype)
        self._scale = config.head_dim**-0.5
        self._qk_norms = [self._qk_norm(layer) for layer in weights.layers]
        # a window that no context outgrows is none
        self._windows = [w if w is not None and w < max_model_len else None for w in config.windows]
        self.windows = tuple(dict.fromkeys(self._windows))

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
        qkv = adapted_linear(x_TH, layer.qkv, layer.qkv_bias, adapters.terms(i, QKV), widths)
        qk, v = self._split_heads(i, layer, qkv)
        q, k = apply_rotary(qk, rotary).split_with_sizes([config.num_heads, config.num_kv_heads], 1)
        write_kv(kv.k[i], k, batch.kv_slots_T)
        write_kv(kv.v[i], v, batch.kv_slots_T)
        o = paged_attention(
            q, kv.k[i], kv.v[i], batch.attention, self._scale, self._windows[i]
        ).flatten(1)
        return adapted_linear(
            o, layer.o, layer.o_bias, adapters.terms(i, ("o_proj",)), (config.hidden_size,)
        )

    def _split_heads(self, i: int, layer: LayerWeights, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """`[T, q + k + v]` to q and k together `[T, heads, D]`, normalised and clipped as the flags
        say, and v `[T, KV heads, D]`."""
        config = self.config
        widths = [config.q_size, config.kv_size, config.kv_size]
        if config.qk_norm == "whole":
            q, k, v = qkv.split_with_sizes(widths, 1)
            assert layer.q_norm is not None
            assert layer.k_norm is not None
            q = rms_norm(q, layer.q_norm, config.rms_norm_eps)
            qkv = torch.cat((q, rms_norm(k, layer.k_norm, config.rms_norm_eps), v), dim=1)
        if config.clip_qkv is not None:
            qkv = qkv.clamp(-config.clip_qkv, config.clip_qkv)
        num_qk = config.num_heads + config.num_kv_heads
        qk, v = qkv.view(len(qkv), -1, config.head_dim).split_with_sizes(
            [num_qk, config.num_kv_heads], 1
        )
        norm = self._qk_norms[i]
        return (qk if norm is None else rms_norm(qk, norm, config.rms_norm_eps)), v

    def _qk_norm(self, layer: LayerWeights) -> Tensor | None:
        """The weights of the norms of all heads of q and k, one under the other: `[heads, D]`."""
        config = self.config
        if config.qk_norm != "head":
            return None
        assert layer.q_norm is not None
        assert layer.k_norm is not None
        q_norm = layer.q_norm.expand(config.num_heads, -1)
        return torch.cat((q_norm, layer.k_norm.expand(config.num_kv_heads, -1)))

    def _mlp(self, i: int, layer: LayerWeights, x_TH: Tensor, adapters: AdapterBatch) -> Tensor:
        config, mlp = self.config, layer.mlp
        if isinstance(mlp, DenseWeights):
            return self._dense(i, mlp, MLP, x_TH, adapters)
        y_TH = moe(
            x_TH, mlp, config.num_experts_per_tok, config.norm_topk_prob,
            adapters.at(i, MLP), adapters.lora,
        )  # fmt: skip
        if layer.shared is not None:
            y_TH += self._shared(i, layer.shared, x_TH, adapters)
        return y_TH

    def _dense(
        self, i: int, mlp: DenseWeights, names: Names, x_TH: Tensor, adapters: AdapterBatch
    ) -> Tensor:
        """`down(silu(gate(x)) * up(x))`; `names` are the sites of gate, up and down."""
        inner = mlp.down.num_in
        gate_up = adapted_linear(
            x_TH, mlp.gate_up, mlp.gate_up_bias, adapters.terms(i, names[:2]), (inner, inner)
        )
        return adapted_linear(
            silu_mul(gate_up), mlp.down, mlp.down_bias, adapters.terms(i, names[2:]),
            (mlp.down.num_out,),
        )  # fmt: skip

    def _shared(self, i: int, shared: SharedExpert, x_TH: Tensor, adapters: AdapterBatch) -> Tensor:
        """`sigmoid(gate(x)) * mlp(x)`: the expert that every token passes."""
        terms = adapters.terms(i, ("shared_expert_gate",))
        gate_T1 = adapted_linear(x_TH, shared.gate, None, terms, (1,))
        return gate_T1.sigmoid() * self._dense(i, shared.mlp, SHARED_MLP, x_TH, adapters)
