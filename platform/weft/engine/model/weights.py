"""The base's weights in the layout the decoder computes in, loaded strictly from safetensors.

Projections that share an input lie side by side; how a matrix is laid out in memory is
`weft_kernels.linear`'s business. A tensor that is left over or missing raises. Projections and
experts may be rounded to int8 or int4 on the way; embedding, head, norms, biases, the router and
the shared expert's gate stay as they are: small, and what is lost there is lost for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft.engine.model.checkpoint import Checkpoint
from weft.engine.model.config import ModelConfig
from weft_kernels.backend import Backend
from weft_kernels.linear import LinearWeight
from weft_kernels.moe import ExpertWeights, QuantizedExperts
from weft_kernels.quantized import QuantizedMatrix


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """gate_up: H to 2 F, gate first; down: F to H; biases or None."""

    gate_up: LinearWeight
    gate_up_bias: Tensor | None
    down: LinearWeight
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """The expert that every token passes, and the gate on its output: H to 1."""

    mlp: DenseWeights
    gate: LinearWeight


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """qkv: H to q + k + v; o: q to H; norms `[H]`; biases or None.

    q_norm and k_norm: `[head_dim]`, or `[q]` and `[k]`, or None, as the config's `qk_norm` says.
    """

    input_norm: Tensor
    qkv: LinearWeight
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: LinearWeight
    o_bias: Tensor | None
    post_norm: Tensor
    mlp: DenseWeights | ExpertWeights | QuantizedExperts
    shared: SharedExpert | None


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """embed_VH `[V, H]`; head: H to V (a copy in its own layout also when tied)."""

    embed_VH: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: LinearWeight

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as they are laid out."""
        return _num_bytes(self)


def _num_bytes(weights: Any) -> int:
    if isinstance(weights, Tensor):
        return weights.nbytes
    if isinstance(weights, LinearWeight | QuantizedMatrix):
        return weights.num_bytes
    if isinstance(weights, tuple):
        return sum(map(_num_bytes, weights))
    if weights is None:
        return 0
    return sum(_num_bytes(getattr(weights, field.name)) for field in fields(weights))


def load_weights(
    base_dir: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend,
    on_layer: Callable[[int], None] = lambda layer: None,
    quantization: str | None = None,
) -> ModelWeights:
    """Read the checkpoint, laid out for `backend`; `on_layer(i)` is called after layer i, for
    progress bars.

    Raises ValueError for a missing, left-over or misshapen tensor, and for weights that cannot be
    rounded to `quantization` ("int8" or "int4").
    """
    checkpoint = Checkpoint(base_dir, dtype, device, quantization, backend)
    hidden, vocab = config.hidden_size, config.vocab_size
    embed = checkpoint.take("model.embed_tokens.weight", vocab, hidden)
    layers = []
    for i in range(config.num_layers):
        layers.append(_load_layer(checkpoint, config, i))
        on_layer(i)
    norm = checkpoint.take("model.norm.weight", hidden)
    tied = config.tie_word_embeddings
    head = embed if tied else checkpoint.take("lm_head.weight", vocab, hidden)
    # some exporters write the tied head again, and old ones what the config says of positions
    checkpoint.finish(
        lambda key: (tied and key == "lm_head.weight") or key.endswith(".rotary_emb.inv_freq")
    )
    return ModelWeights(
        embed_VH=checkpoint.place(embed),
        layers=tuple(layers),
        norm=checkpoint.place(norm),
        head=checkpoint.lay_out(head.t()),
    )


def _load_layer(checkpoint: Checkpoint, config: ModelConfig, layer: int) -> LayerWeights:
    prefix = f"model.layers.{layer}"
    hidden, attention = config.hidden_size, f"{prefix}.self_attn"
    widths = {"q_proj": config.q_size, "k_proj": config.kv_size, "v_proj": config.kv_size}
    take, place = checkpoint.take, checkpoint.place
    qkv, qkv_bias = _load_linear(checkpoint, attention, widths, hidden, config.qkv_bias)
    o, o_bias = _load_linear(
        checkpoint, attention, {"o_proj": hidden}, config.q_size, config.o_bias
    )
    q_norm = k_norm = None
    if config.qk_norm != "none":
        per_head = config.qk_norm == "head"
        q_size = config.head_dim if per_head else config.q_size
        k_size = config.head_dim if per_head else config.kv_size
        q_norm = place(take(f"{attention}.q_norm.weight", q_size))
        k_norm = place(take(f"{attention}.k_norm.weight", k_size))
    is_shared = layer in config.moe_layers and config.shared_intermediate_size > 0
    return LayerWeights(
        input_norm=place(take(f"{prefix}.input_layernorm.weight", hidden)),
        qkv=qkv,
        qkv_bias=qkv_bias,
        q_norm=q_norm,
        k_norm=k_norm,
        o=o,
        o_bias=o_bias,
        post_norm=place(take(f"{prefix}.post_attention_layernorm.weight", hidden)),
        mlp=_load_mlp(checkpoint, config, layer),
        shared=_load_shared(checkpoint, config, f"{prefix}.mlp") if is_shared else None,
    )


def _load_linear(
    checkpoint: Checkpoint, prefix: str, widths: Mapping[str, int], num_in: int, has_bias: bool
) -> tuple[LinearWeight, Tensor | None]:
    """Projections of one input, side by side, in the order of `widths`: name to out."""
    matrices = [
        checkpoint.take_matrix(f"{prefix}.{name}.weight", width, num_in)
        for name, width in widths.items()
    ]
    name = f"{prefix}.{'+'.join(widths)}"
    weight = checkpoint.lay_out_projection(name, torch.cat(matrices, dim=1))
    if not has_bias:
        return weight, None
    biases = [checkpoint.take(f"{prefix}.{name}.bias", width) for name, width in widths.items()]
    return weight, checkpoint.place(torch.cat(biases))


def _load_dense(
    checkpoint: Checkpoint, prefix: str, hidden: int, inner: int, has_bias: bool
) -> DenseWeights:
    gate_up = {"gate_proj": inner, "up_proj": inner}
    return DenseWeights(
        *_load_linear(checkpoint, prefix, gate_up, hidden, has_bias),
        *_load_linear(checkpoint, prefix, {"down_proj": hidden}, inner, has_bias),
    )


def _load_mlp(
    checkpoint: Checkpoint, config: ModelConfig, layer: int
) -> DenseWeights | ExpertWeights | QuantizedExperts:
    prefix = f"model.layers.{layer}"
    if layer in config.moe_layers:
        return _load_experts(checkpoint, config, prefix)
    hidden, inner = config.hidden_size, config.intermediate_size
    return _load_dense(checkpoint, f"{prefix}.mlp", hidden, inner, config.mlp_bias)


def _load_shared(checkpoint: Checkpoint, config: ModelConfig, prefix: str) -> SharedExpert:
    hidden, inner = config.hidden_size, config.shared_intermediate_size
    gate = checkpoint.take_matrix(f"{prefix}.shared_expert_gate.weight", 1, hidden)
    return SharedExpert(
        mlp=_load_dense(checkpoint, f"{prefix}.shared_expert", hidden, inner, has_bias=False),
        gate=checkpoint.lay_out(gate),
    )


def _load_experts(
    checkpoint: Checkpoint, config: ModelConfig, prefix: str
) -> ExpertWeights | QuantizedExperts:
    """Both spellings on disk: a module per expert, as the family calls them, or transformers 5's
    fused parameters."""
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    num_experts, names = config.num_experts, config.expert_names
    block = f"{prefix}.mlp"
    if checkpoint.has(f"{block}.experts.gate_up_proj"):
        gate_up = checkpoint.take(f"{block}.experts.gate_up_proj", num_experts, 2 * inner, hidden)
        down = checkpoint.take(f"{block}.experts.down_proj", num_experts, hidden, inner)
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    else:
        block = f"{prefix}.{names.block}"

        def stack(name: str, num_out: int, num_in: int) -> Tensor:
            keys = (f"{block}.experts.{e}.{name}.weight" for e in range(num_experts))
            return torch.stack([checkpoint.take_matrix(key, num_out, num_in) for key in keys])

        gate_up = torch.cat(
            (stack(names.gate, inner, hidden), stack(names.up, inner, hidden)), dim=2
        )
        down = stack(names.down, hidden, inner)
    router = checkpoint.take_matrix(f"{block}.gate.weight", num_experts, hidden)
    return checkpoint.lay_out_experts(f"{block}.experts", router, gate_up, down)
