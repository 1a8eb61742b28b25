"""A decoder's shape and flags, read from a Hugging Face `config.json`.

Every key that changes the computation is either understood or refused by name; nothing is guessed.
Which model types there are, and how they differ, is `weft_adapters.families`' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weft.engine.model.rope import read_rope
from weft_adapters.base_config import BaseShape, Keys, read_shape
from weft_adapters.families import ExpertNames, check_keys, family_of
from weft_kernels.rotary import Rope


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the decoder needs to know. `windows` is by layer, None where a layer sees all before.

    qk_norm: on q and k, none, per head, or over the whole projection before it is split.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: Rope
    max_position_embeddings: int
    tie_word_embeddings: bool
    qk_norm: Literal["none", "head", "whole"]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    clip_qkv: float | None
    windows: tuple[int | None, ...]
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    norm_topk_prob: bool
    moe_layers: frozenset[int]
    expert_names: ExpertNames

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


def read_hf_config(base_dir: Path) -> dict[str, object]:
    """The parsed `config.json`; ValueError when it is missing or not an object."""
    path = base_dir / "config.json"
    if not path.is_file():
        raise ValueError(f"{base_dir} has no config.json: it is not a Hugging Face model folder")
    raw = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return raw


def create_model_config(raw: Mapping[str, object]) -> ModelConfig:
    """Read and check; ValueError names the key that is missing, wrong, unknown or unsupported."""
    family = family_of(raw)
    check_keys(raw, family)
    shape, keys = read_shape(raw), Keys(raw, family)
    rope = read_rope(keys)
    return ModelConfig(
        model_type=str(raw["model_type"]),
        vocab_size=keys.integer("vocab_size"),
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        rms_norm_eps=keys.number("rms_norm_eps"),
        rope=rope,
        max_position_embeddings=_read_max_len(keys, rope),
        tie_word_embeddings=keys.boolean("tie_word_embeddings"),
        qk_norm=family.qk_norm,
        qkv_bias=keys.flag(family.qkv_bias),
        o_bias=keys.flag(family.o_bias),
        mlp_bias=keys.flag(family.mlp_bias),
        clip_qkv=None if keys.value("clip_qkv") is None else keys.number("clip_qkv"),
        windows=_read_windows(keys, shape.num_layers),
        num_experts=shape.num_experts,
        num_experts_per_tok=_read_top_k(keys, shape),
        moe_intermediate_size=shape.moe_intermediate_size,
        shared_intermediate_size=shape.shared_intermediate_size,
        norm_topk_prob=keys.flag(family.renormalize),
        moe_layers=shape.moe_layers,
        expert_names=family.experts,
    )


def _read_max_len(keys: Keys, rope: Rope) -> int:
    """What YaRN reaches is often not in `max_position_embeddings`, which then has what was trained;
    vLLM serves the product too."""
    scaled = int(rope.original_max_len * rope.factor) if rope.kind == "yarn" else 0
    return max(keys.integer("max_position_embeddings"), scaled)


def _read_top_k(keys: Keys, shape: BaseShape) -> int:
    if not shape.moe_layers:
        return 0
    top_k = keys.integer("num_experts_per_tok")
    if top_k > shape.num_experts:
        raise ValueError(
            f"config.json: num_experts_per_tok={top_k} is more than the {shape.num_experts} experts"
        )
    return top_k


def _read_windows(keys: Keys, num_layers: int) -> tuple[int | None, ...]:
    """By layer: `layer_types` where the file has it, else the family's rule."""
    family = keys.family
    is_off = family.knows("use_sliding_window") and not keys.boolean("use_sliding_window")
    is_null = keys.value("sliding_window") is None
    window = None if is_off or is_null else keys.integer("sliding_window")
    types = keys.value("layer_types")
    if types is not None:
        slides = _read_layer_types(types, num_layers)
        if window is None and any(slides):
            raise ValueError(
                "config.json: 'layer_types' has layers that slide, but no window is on"
            )
    elif family.window == "none" or window is None:
        return (None,) * num_layers
    elif family.window == "every":
        slides = [True] * num_layers
    else:
        border = keys.integer("max_window_layers", minimum=0)
        layers = range(num_layers)
        if family.window == "from_layer":
            slides = [layer >= border for layer in layers]
        else:
            slides = [layer % 2 == 0 and layer < border for layer in layers]
    return tuple(window if slide else None for slide in slides)


def _read_layer_types(types: object, num_layers: int) -> list[bool]:
    if not isinstance(types, list) or len(types) != num_layers:
        raise ValueError(f"config.json: 'layer_types' must list {num_layers} layers, not {types!r}")
    unknown = [name for name in types if name not in ("full_attention", "sliding_attention")]
    if unknown:
        raise ValueError(f"config.json: 'layer_types' {unknown[0]!r} is not supported")
    return [name == "sliding_attention" for name in types]
