"""A decoder's shape, read from a Hugging Face `config.json`.

Every key that changes the computation is either understood or refused by name; nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weft_adapters.sites import moe_layers

# values of keys that would change the computation, had they another value
_REQUIRED_VALUES: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
    "attention_dropout": (0, 0.0, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, 1.0, None),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the decoder needs to know; see transformers' Qwen3Config and Qwen3MoeConfig."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    moe_layers: frozenset[int]

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


class _Keys:
    """Typed reads of a JSON object that name the key they miss."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        self.raw = raw

    def integer(self, *names: str, default: int | None = None, minimum: int = 1) -> int:
        value = next((self.raw[n] for n in names if self.raw.get(n) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(
                f"config.json: {names[0]!r} must be a whole number of at least {minimum}, "
                f"not {value!r}"
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"config.json: {name!r} must be a number, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"config.json: {name!r} must be true or false, not {value!r}")
        return value


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
    """Read and check; ValueError names the key that is missing, wrong or unsupported."""
    model_type = raw.get("model_type")
    if model_type not in ("qwen3", "qwen3_moe"):
        raise ValueError(
            f"config.json: model_type {model_type!r} is not served; qwen3, qwen3_moe are"
        )
    for key, allowed in _REQUIRED_VALUES.items():
        if key in raw and raw[key] not in allowed:
            raise ValueError(f"config.json: {key}={raw[key]!r} is not supported")
    keys = _Keys(raw)
    num_heads = keys.integer("num_attention_heads")
    num_layers = keys.integer("num_hidden_layers")
    is_moe = model_type == "qwen3_moe"
    num_experts = keys.integer("num_local_experts", "num_experts", minimum=0) if is_moe else 0
    num_kv_heads = keys.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"config.json: num_attention_heads={num_heads} is no multiple of "
            f"num_key_value_heads={num_kv_heads}"
        )
    num_experts_per_tok = keys.integer("num_experts_per_tok") if num_experts else 0
    if num_experts_per_tok > num_experts:
        raise ValueError(
            f"config.json: num_experts_per_tok={num_experts_per_tok} is more than the "
            f"{num_experts} experts"
        )
    return ModelConfig(
        model_type=str(model_type),
        vocab_size=keys.integer("vocab_size"),
        hidden_size=keys.integer("hidden_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=keys.integer("head_dim", default=keys.integer("hidden_size") // num_heads),
        intermediate_size=keys.integer("intermediate_size"),
        rms_norm_eps=keys.number("rms_norm_eps"),
        rope_theta=_rope_theta(raw),
        max_position_embeddings=keys.integer("max_position_embeddings"),
        tie_word_embeddings=keys.flag("tie_word_embeddings", default=False),
        attention_bias=keys.flag("attention_bias", default=False),
        num_experts=num_experts,
        num_experts_per_tok=num_experts_per_tok,
        moe_intermediate_size=keys.integer("moe_intermediate_size") if num_experts else 0,
        norm_topk_prob=keys.flag("norm_topk_prob", default=False) if is_moe else False,
        moe_layers=moe_layers(raw, num_layers) if num_experts else frozenset(),
    )


def _rope_theta(raw: Mapping[str, object]) -> float:
    """transformers 5 writes `rope_parameters`, 4 wrote `rope_theta`."""
    parameters = raw.get("rope_parameters")
    if parameters is None:
        return _Keys(raw).number("rope_theta")
    if not isinstance(parameters, dict):
        raise ValueError("config.json: 'rope_parameters' must be an object")
    if parameters.get("rope_type", "default") != "default":
        raise ValueError(f"config.json: rope_type {parameters['rope_type']!r} is not supported")
    unknown = set(parameters) - {"rope_type", "rope_theta"}
    if unknown:
        raise ValueError(f"config.json: rope_parameters {sorted(unknown)} are not supported")
    return _Keys(parameters).number("rope_theta")
