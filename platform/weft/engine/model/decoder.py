"""One decoder for every family: tokens of a mixed batch in, logits of the rows asked for out.

It knows rows, positions and KV slots; neither requests nor tenants, nor which adapter is whose.

Legend: T rows, H hidden, N KV heads, D head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from weft.engine.model.config import ModelConfig
from weft.engine.model.weights import DenseWeights, LayerWeights, ModelWeights, SharedExpert
from weft.engine.vocabulary_batch import VocabularyBatch
from weft_adapters.sites import ROUTER
from weft_kernels.attention import Int8Cache
from weft_kernels.backend import Attention, Backend
from weft_kernels.layers import (
    DenseHalf,
    FusedLayers,
    LayerRows,
    LayerShape,
    LayerSpec,
    LayerStep,
    StepRun,
)
from weft_kernels.linear import LinearWeight, as_linear_weight
from weft_kernels.norm import rms_norm
from weft_kernels.rotary import create_rotary_table

QKV = ("q_proj", "k_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
Names = tuple[str, ...]
ROUTERS = (ROUTER,)
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


class AdapterBatch(Protocol):
    """A step's adapters, and which rows use what."""

    def linear(
        self,
        x_TI: Tensor,
        weight: LinearWeight,
        bias_O: Tensor | None,
        layer: int,
        projections: Names,
        widths: Sequence[int],
    ) -> Tensor:
        """`y = x W + bias`, then each row's own adapter: `[T, O]`, `widths[k]` columns of which are
        those of `projections[k]`."""

    def experts(self, layer: int) -> Any:
        """What the backend's `moe` takes; None where no row changes experts of this layer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step.

    tokens_T: int64 or int32; positions_T, kv_slots_T: int64; logit_rows: int64, the rows whose next
    token is asked for; attention: from the decoder's backend; num_tokens: int32 `[1]`, rows from
    there on are padding, None where there is none; vocabulary: None where no row's adapter has
    tokens, an embedding or a head of its own; last: of the logit_rows, which ascend, one query
    each: then the last layer computes no others after its keys and values; None: it computes all.
    """

    tokens_T: Tensor
    positions_T: Tensor
    kv_slots_T: Tensor
    logit_rows: Tensor
    attention: Attention
    adapters: AdapterBatch
    num_tokens: Tensor | None = None
    vocabulary: VocabularyBatch | None = None
    last: LayerRows | None = None


class Decoder:
    """Pre-norm decoder: grouped-query attention on rotary positions, SwiGLU or experts of it.

    What families add (biases, norms on q and k, windows, a shared expert) is in the config's flags;
    `windows` are the distinct ones that a batch's attention is created for.
    """

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, max_model_len: int, backend: Backend
    ) -> None:
        self.config = config
        self.weights = weights
        self.backend = backend
        self.max_model_len = max_model_len
        table = create_rotary_table(
            max_model_len, config.head_dim, config.rope, weights.embed_VH.device
        )
        self._rotary_table = table.to(weights.embed_VH.dtype)
        self._scale = config.head_dim**-0.5
        self._qkv_widths = (config.q_size, config.kv_size, config.kv_size)
        self._qk_norms = [self._qk_norm(layer) for layer in weights.layers]
        self._routers = [
            None if isinstance(layer.mlp, DenseWeights) else as_linear_weight(layer.mlp.router_HE)
            for layer in weights.layers
        ]
        # a window that no context outgrows is none
        self._windows = [w if w is not None and w < max_model_len else None for w in config.windows]
        self.windows = tuple(dict.fromkeys(self._windows))
        self._fused = self._fuse()

    def _fuse(self) -> FusedLayers | None:
        config = self.config
        if config.clip_qkv is not None or config.qk_norm == "whole":
            return None
        shape = LayerShape(
            config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim,
            config.rms_norm_eps, self._scale,
        )  # fmt: skip
        layers = [
            LayerSpec(
                layer.input_norm, layer.qkv, layer.qkv_bias, norms, layer.o, layer.o_bias,
                layer.post_norm, window, _dense_half(layer.mlp),
            )
            for layer, norms, window in zip(
                self.weights.layers, self._qk_norms, self._windows, strict=True
            )
        ]  # fmt: skip
        return self.backend.fuse_layers(layers, shape)

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: KVCache) -> Tensor:
        """Write the rows' keys and values to `kv` and return float32 logits `[num rows, V]`, or of
        the largest vocabulary of the batch."""
        rotary = self._rotary_table.index_select(0, batch.positions_T)
        embed_VH, head, vocabulary = self.weights.embed_VH, self.weights.head, batch.vocabulary
        if vocabulary is None:
            x_TH = embed_VH.index_select(0, batch.tokens_T)
        else:
            x_TH = vocabulary.embed(embed_VH, batch.tokens_T)
        x_TH, delta_TH = self._layers(x_TH, rotary, batch, kv)
        if batch.last is None:
            x_TH = x_TH.index_select(0, batch.logit_rows)
            delta_TH = delta_TH.index_select(0, batch.logit_rows)
        h_TH = self.backend.add_rms_norm_(
            x_TH, delta_TH, self.weights.norm, self.config.rms_norm_eps
        )
        return head.apply(h_TH).float() if vocabulary is None else vocabulary.head(head, h_TH)

    def _layers(
        self, x_TH: Tensor, rotary: Tensor, batch: Batch, kv: KVCache
    ) -> tuple[Tensor, Tensor]:
        """The residual stream after all layers, and what is to be added to it: of the rows that are
        asked for where `batch.last` says how."""
        run = self._start_run(rotary, batch, kv)
        if run is None:
            return self._layers_by_operators(x_TH, rotary, batch, kv)
        i, delta_TH, num_layers = 0, None, self.config.num_layers
        while i < num_layers:
            i, x_TH, y_TH = run.layers(i, x_TH, delta_TH)
            layer, is_last = self.weights.layers[i - 1], i == num_layers
            is_dense = isinstance(layer.mlp, DenseWeights)
            delta_TH = y_TH if is_dense else self._mlp(i - 1, layer, y_TH, batch, is_last)
        assert delta_TH is not None
        return x_TH, delta_TH

    def _start_run(self, rotary: Tensor, batch: Batch, kv: KVCache) -> StepRun | None:
        """None where the backend computes this step operator by operator."""
        if self._fused is None:
            return None
        rows = LayerRows(len(batch.tokens_T), batch.attention, batch.adapters)
        return self._fused.start(
            LayerStep(rows, batch.logit_rows, batch.last, rotary, batch.kv_slots_T, kv.k, kv.v)
        )

    def _layers_by_operators(
        self, x_TH: Tensor, rotary: Tensor, batch: Batch, kv: KVCache
    ) -> tuple[Tensor, Tensor]:
        eps, delta_TH = self.config.rms_norm_eps, None
        add_norm = self.backend.add_rms_norm_
        for i, layer in enumerate(self.weights.layers):
            is_last = i + 1 == self.config.num_layers
            h_TH = add_norm(x_TH, delta_TH, layer.input_norm, eps)
            delta_TH = self._attention(i, layer, h_TH, rotary, batch, kv, is_last)
            if is_last and batch.last is not None:
                x_TH = x_TH.index_select(0, batch.logit_rows)
            h_TH = add_norm(x_TH, delta_TH, layer.post_norm, eps)
            delta_TH = self._mlp(i, layer, h_TH, batch, is_last)
        assert delta_TH is not None
        return x_TH, delta_TH

    def _attention(
        self, i: int, layer: LayerWeights, x_TH: Tensor, rotary: Tensor, batch: Batch, kv: KVCache,
        is_last: bool,
    ) -> Tensor:  # fmt: skip
        config, adapters, attention = self.config, batch.adapters, batch.attention
        qkv = adapters.linear(x_TH, layer.qkv, layer.qkv_bias, i, QKV, self._qkv_widths)
        q = self.backend.rotate_and_write(
            self._normalise_and_clip(layer, qkv), self._qk_norms[i], config.rms_norm_eps, rotary,
            batch.kv_slots_T, config.num_heads, kv.k[i], kv.v[i],
        )  # fmt: skip
        if is_last and batch.last is not None:
            q = q.index_select(0, batch.logit_rows)
            adapters, attention = batch.last.adapters, batch.last.attention
        o = attention.attend(q, kv.k[i], kv.v[i], self._scale, self._windows[i])
        return adapters.linear(
            o.flatten(1), layer.o, layer.o_bias, i, ("o_proj",), (config.hidden_size,)
        )

    def _normalise_and_clip(self, layer: LayerWeights, qkv: Tensor) -> Tensor:
        """What the flags do to whole projections, before they are heads."""
        config = self.config
        if config.qk_norm == "whole":
            q, k, v = qkv.split_with_sizes(self._qkv_widths, 1)
            assert layer.q_norm is not None
            assert layer.k_norm is not None
            q = rms_norm(q, layer.q_norm, config.rms_norm_eps)
            qkv = torch.cat((q, rms_norm(k, layer.k_norm, config.rms_norm_eps), v), dim=1)
        if config.clip_qkv is not None:
            qkv = qkv.clamp(-config.clip_qkv, config.clip_qkv)
        return qkv

    def _qk_norm(self, layer: LayerWeights) -> Tensor | None:
        """The weights of the norms of all heads of q and k, one under the other: `[heads, D]`."""
        config = self.config
        if config.qk_norm != "head":
            return None
        assert layer.q_norm is not None
        assert layer.k_norm is not None
        q_norm = layer.q_norm.expand(config.num_heads, -1)
        return torch.cat((q_norm, layer.k_norm.expand(config.num_kv_heads, -1)))

    def _mlp(
        self, i: int, layer: LayerWeights, x_TH: Tensor, batch: Batch, is_last: bool
    ) -> Tensor:
        config, mlp = self.config, layer.mlp
        adapters: AdapterBatch = (
            batch.last.adapters if is_last and batch.last is not None else batch.adapters
        )
        if isinstance(mlp, DenseWeights):
            return self._dense(i, mlp, MLP, x_TH, adapters)
        router = self._routers[i]
        assert router is not None
        logits_TE = adapters.linear(x_TH, router, None, i, ROUTERS, (router.num_out,))
        y_TH = self.backend.moe(
            x_TH, mlp, config.num_experts_per_tok, config.norm_topk_prob, adapters.experts(i),
            batch.num_tokens, logits_TE,
        )  # fmt: skip
        if layer.shared is not None:
            y_TH += self._shared(i, layer.shared, x_TH, adapters)
        return y_TH

    def _dense(
        self, i: int, mlp: DenseWeights, names: Names, x_TH: Tensor, adapters: AdapterBatch
    ) -> Tensor:
        """`down(silu(gate(x)) * up(x))`; `names` are the sites of gate, up and down."""
        inner, num_out = mlp.down.num_in, mlp.down.num_out
        gate_up = adapters.linear(x_TH, mlp.gate_up, mlp.gate_up_bias, i, names[:2], (inner, inner))
        act = self.backend.silu_mul(gate_up)
        return adapters.linear(act, mlp.down, mlp.down_bias, i, names[2:], (num_out,))

    def _shared(self, i: int, shared: SharedExpert, x_TH: Tensor, adapters: AdapterBatch) -> Tensor:
        """`sigmoid(gate(x)) * mlp(x)`: the expert that every token passes."""
        gate_T1 = adapters.linear(x_TH, shared.gate, None, i, ("shared_expert_gate",), (1,))
        return gate_T1.sigmoid() * self._dense(i, shared.mlp, SHARED_MLP, x_TH, adapters)


def _dense_half(mlp: Any) -> DenseHalf | None:
    if not isinstance(mlp, DenseWeights):
        return None
    return DenseHalf(mlp.gate_up, mlp.gate_up_bias, mlp.down, mlp.down_bias)
