"""The base's weights in the layout the decoder computes in, loaded strictly from safetensors.

Projections that share an input lie side by side; how a matrix is laid out in memory is
`weft_kernels.linear`'s business. A tensor that is left over or missing raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from weft.engine.model.config import ModelConfig
from weft_kernels.linear import LinearWeight, create_linear_weight
from weft_kernels.moe import ExpertWeights


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """gate_up: H to 2 F, gate first; down: F to H."""

    gate_up: LinearWeight
    down: LinearWeight


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """qkv: H to q + k + v; o: q to H; norms `[H]` and `[head_dim]`; biases or None."""

    input_norm: Tensor
    qkv: LinearWeight
    qkv_bias: Tensor | None
    q_norm: Tensor
    k_norm: Tensor
    o: LinearWeight
    o_bias: Tensor | None
    post_norm: Tensor
    mlp: DenseWeights | ExpertWeights


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """embed_VH `[V, H]`; head: H to V (a copy in its own layout also when tied)."""

    embed_VH: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: LinearWeight


class _Checkpoint:
    """Takes each tensor of a (sharded) checkpoint exactly once."""

    def __init__(self, base_dir: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._files = {path: safe_open(path, "pt") for path in _shard_paths(base_dir)}
        self._file_of = {key: path for path, file in self._files.items() for key in _keys_of(file)}
        self._left = set(self._file_of)

    def has(self, key: str) -> bool:
        return key in self._file_of

    def take(self, key: str, *shape: int) -> Tensor:
        if key not in self._left:
            raise ValueError(f"the checkpoint has no tensor {key!r}")
        self._left.remove(key)
        tensor = _read(self._files[self._file_of[key]], key)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}, the config asks for {shape}")
        return tensor.to(self._dtype)

    def take_matrix(self, key: str, num_out: int, num_in: int) -> Tensor:
        """A linear weight, transposed to `[in, out]`."""
        return self.take(key, num_out, num_in).t()

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous().to(self._device)

    def lay_out(self, matrix: Tensor) -> LinearWeight:
        """A matrix `[in, out]` as the operators want it."""
        return create_linear_weight(matrix.to(self._device))

    def finish(self, ignored: Callable[[str], bool]) -> None:
        left = sorted(key for key in self._left if not ignored(key))
        if left:
            raise ValueError(f"the checkpoint has tensors that the model does not use: {left[:8]}")


def _keys_of(file: Any) -> list[str]:
    return list(file.keys())  # safetensors' binding has no annotations


def _read(file: Any, key: str) -> Tensor:
    tensor: Tensor = file.get_tensor(key)
    return tensor


def _shard_paths(base_dir: Path) -> list[Path]:
    index = base_dir / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [base_dir / name for name in sorted(names)]
    path = base_dir / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{base_dir} has no model.safetensors")
    return [path]


def load_weights(
    base_dir: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    on_layer: Callable[[int], None] = lambda layer: None,
) -> ModelWeights:
    """Read the checkpoint; `on_layer(i)` is called after layer i for progress bars.

    Raises ValueError for a missing, left-over or misshapen tensor.
    """
    checkpoint = _Checkpoint(base_dir, dtype, device)
    hidden, vocab = config.hidden_size, config.vocab_size
    embed = checkpoint.take("model.embed_tokens.weight", vocab, hidden)
    layers = []
    for i in range(config.num_layers):
        layers.append(_load_layer(checkpoint, config, i))
        on_layer(i)
    norm = checkpoint.take("model.norm.weight", hidden)
    tied = config.tie_word_embeddings
    head = embed if tied else checkpoint.take("lm_head.weight", vocab, hidden)
    # some exporters write the tied head again
    checkpoint.finish(lambda key: tied and key == "lm_head.weight")
    return ModelWeights(
        embed_VH=checkpoint.place(embed),
        layers=tuple(layers),
        norm=checkpoint.place(norm),
        head=checkpoint.lay_out(head.t()),
    )


def _load_layer(checkpoint: _Checkpoint, config: ModelConfig, layer: int) -> LayerWeights:
    prefix = f"model.layers.{layer}"
    hidden, attention = config.hidden_size, f"{prefix}.self_attn"
    widths = {"q_proj": config.q_size, "k_proj": config.kv_size, "v_proj": config.kv_size}
    qkv = [
        checkpoint.take_matrix(f"{attention}.{name}.weight", width, hidden)
        for name, width in widths.items()
    ]
    qkv_bias = o_bias = None
    if config.attention_bias:
        biases = [checkpoint.take(f"{attention}.{n}.bias", width) for n, width in widths.items()]
        qkv_bias = checkpoint.place(torch.cat(biases))
        o_bias = checkpoint.place(checkpoint.take(f"{attention}.o_proj.bias", hidden))
    take, place, lay_out = checkpoint.take, checkpoint.place, checkpoint.lay_out
    return LayerWeights(
        input_norm=place(take(f"{prefix}.input_layernorm.weight", hidden)),
        qkv=lay_out(torch.cat(qkv, dim=1)),
        qkv_bias=qkv_bias,
        q_norm=place(take(f"{attention}.q_norm.weight", config.head_dim)),
        k_norm=place(take(f"{attention}.k_norm.weight", config.head_dim)),
        o=lay_out(checkpoint.take_matrix(f"{attention}.o_proj.weight", hidden, config.q_size)),
        o_bias=o_bias,
        post_norm=place(take(f"{prefix}.post_attention_layernorm.weight", hidden)),
        mlp=_load_mlp(checkpoint, config, layer),
    )


def _load_mlp(
    checkpoint: _Checkpoint, config: ModelConfig, layer: int
) -> DenseWeights | ExpertWeights:
    prefix, hidden = f"model.layers.{layer}.mlp", config.hidden_size
    if layer in config.moe_layers:
        return _load_experts(checkpoint, config, prefix)
    inner = config.intermediate_size
    gate, up = (
        checkpoint.take_matrix(f"{prefix}.{name}_proj.weight", inner, hidden)
        for name in ("gate", "up")
    )
    down = checkpoint.take_matrix(f"{prefix}.down_proj.weight", hidden, inner)
    return DenseWeights(
        gate_up=checkpoint.lay_out(torch.cat((gate, up), dim=1)), down=checkpoint.lay_out(down)
    )


def _load_experts(checkpoint: _Checkpoint, config: ModelConfig, prefix: str) -> ExpertWeights:
    """Both spellings on disk: a module per expert, or transformers 5's fused parameters."""
    hidden, inner, num_experts = (
        config.hidden_size,
        config.moe_intermediate_size,
        config.num_experts,
    )
    router = checkpoint.take_matrix(f"{prefix}.gate.weight", num_experts, hidden)
    if checkpoint.has(f"{prefix}.experts.gate_up_proj"):
        gate_up = checkpoint.take(f"{prefix}.experts.gate_up_proj", num_experts, 2 * inner, hidden)
        down = checkpoint.take(f"{prefix}.experts.down_proj", num_experts, hidden, inner)
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    else:

        def stack(name: str, num_out: int, num_in: int) -> Tensor:
            keys = (f"{prefix}.experts.{e}.{name}.weight" for e in range(num_experts))
            return torch.stack([checkpoint.take_matrix(key, num_out, num_in) for key in keys])

        gate_up = torch.cat(
            (stack("gate_proj", inner, hidden), stack("up_proj", inner, hidden)), dim=2
        )
        down = stack("down_proj", hidden, inner)
    return ExpertWeights(
        router_HE=checkpoint.place(router),
        gate_up_EHF=checkpoint.place(gate_up),
        down_EFH=checkpoint.place(down),
    )
