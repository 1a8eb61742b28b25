"""The families of base models that are served: one table, plain data, one entry per `model_type`.

The sites of adapters and the engine's decoder are both read from it, so a family that fits the
flags takes an entry here and a line in `tests/engine/families.py`. Every key of a config is
understood, known to change nothing, or refused by name. Source: the configuration and modelling
files of transformers 5; their defaults stand in for absent keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Flag = bool | str
"""A constant of the family, or the name of the config key that decides."""


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Modules per expert: `<block>.experts.<e>.<gate>`; the router is `<block>.gate`.

    Experts fused into parameters are `mlp.experts.gate_up_proj` and `.down_proj` in every family.
    """

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def spell(self, projection: str) -> str:
        """What the family calls the module of "gate_proj", "up_proj" or "down_proj"."""
        return {"gate_proj": self.gate, "up_proj": self.up, "down_proj": self.down}[projection]


@dataclass(frozen=True, slots=True)
class Family:
    """How a family differs from Llama without its biases.

    required: keys that it has besides `REQUIRED_KEYS`; defaults: keys that may be absent.
    qk_norm: none, one weight per head dim, or over the whole projection.
    window: no layer, every layer, those from `max_window_layers` on, or every other one before it.
    sparse: which layers have experts: none, every one, or by `decoder_sparse_step`.
    """

    defaults: Mapping[str, object]
    required: tuple[str, ...] = ()
    qk_norm: Literal["none", "head", "whole"] = "none"
    qkv_bias: Flag = False
    o_bias: Flag = False
    mlp_bias: Flag = False
    window: Literal["none", "every", "from_layer", "alternate"] = "none"
    sparse: Literal["none", "every", "step"] = "none"
    experts: ExpertNames = ExpertNames()
    renormalize: Flag = False
    expert_size_key: str = "intermediate_size"
    shared_size_key: str | None = None

    def knows(self, key: str) -> bool:
        """True for a key whose value the loader reads."""
        known = key in REQUIRED_KEYS or key in self.required
        return known or key in COMMON_DEFAULTS or key in self.defaults

    def default(self, key: str) -> object:
        return self.defaults.get(key, COMMON_DEFAULTS.get(key))


REQUIRED_KEYS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "max_position_embeddings",
)  # fmt: skip
NUM_EXPERTS_KEYS = ("num_local_experts", "num_experts")

# no key-value heads: as many as heads; no head dim: hidden_size / heads
COMMON_DEFAULTS: Mapping[str, object] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}

_SLIDING: Mapping[str, object] = {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_STEP: Mapping[str, object] = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "norm_topk_prob": False,
}
_STEP_REQUIRED = (*NUM_EXPERTS_KEYS, "num_experts_per_tok", "moe_intermediate_size")

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        defaults={"attention_bias": False, "mlp_bias": False},
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    "mistral": Family(
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
        window="every",
    ),
    "qwen2": Family(
        defaults={"num_key_value_heads": 32, **_SLIDING},
        qkv_bias=True,
        window="from_layer",
    ),
    "qwen3": Family(
        defaults={
            "num_key_value_heads": 32, "head_dim": 128, "attention_bias": False, **_SLIDING,
        },
        qk_norm="head",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        window="from_layer",
    ),
    "mixtral": Family(
        defaults={
            "num_key_value_heads": 8, "sliding_window": None, "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
        },
        required=(*NUM_EXPERTS_KEYS, "num_experts_per_tok"),
        window="every",
        sparse="every",
        experts=ExpertNames("block_sparse_moe", "w1", "w3", "w2"),
        renormalize=True,
    ),
    "olmoe": Family(
        defaults={
            "rms_norm_eps": 1e-5, "attention_bias": False, "clip_qkv": None,
            "norm_topk_prob": False,
        },
        required=(*NUM_EXPERTS_KEYS, "num_experts_per_tok"),
        qk_norm="whole",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        sparse="every",
        renormalize="norm_topk_prob",
    ),
    "qwen2_moe": Family(
        defaults={"num_key_value_heads": 16, "qkv_bias": True, **_SLIDING, **_STEP},
        required=(*_STEP_REQUIRED, "shared_expert_intermediate_size"),
        qkv_bias="qkv_bias",
        window="alternate",
        sparse="step",
        renormalize="norm_topk_prob",
        expert_size_key="moe_intermediate_size",
        shared_size_key="shared_expert_intermediate_size",
    ),
    "qwen3_moe": Family(
        defaults={
            "num_key_value_heads": 4, "attention_bias": False, "use_sliding_window": False,
            "sliding_window": 4096, **_STEP,
        },
        required=_STEP_REQUIRED,
        qk_norm="head",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        window="every",
        sparse="step",
        renormalize="norm_topk_prob",
        expert_size_key="moe_intermediate_size",
    ),
}  # fmt: skip

# the only values that a key may have in a family that does not know it
OFF_VALUES: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0, None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "clip_qkv": (None,),
    "use_sliding_window": (False, None),
    "sliding_window": (None,),
    "layer_types": (None,),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "quantization_config": (None,),
    "router_jitter_noise": (0, None),
    "chunk_size_feed_forward": (0, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
    "is_decoder": (False, None),
    "pruned_heads": ({}, None),
}

# change no logit: names, training, bookkeeping, how transformers itself runs the model
HARMLESS_KEYS = frozenset({
    "architectures", "_name_or_path", "name_or_path", "torch_dtype", "dtype",
    "transformers_version", "transformers.js_config", "bos_token_id", "eos_token_id",
    "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id", "use_cache",
    "initializer_range", "pretraining_tp", "max_sequence_length", "max_window_layers",
    "is_llama_config", "unsloth_version", "unsloth_fixed", "output_router_logits",
    "router_aux_loss_coef", "output_attentions", "output_hidden_states", "return_dict",
    "problem_type", "id2label", "label2id", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "torchscript", "use_bfloat16", "tokenizer_class",
    "gradient_checkpointing",
    # how transformers generates where a request does not say
    "do_sample", "temperature", "top_k", "top_p", "num_beams", "repetition_penalty", "max_length",
    "min_length", "max_new_tokens",
})  # fmt: skip


def family_of(config: Mapping[str, object]) -> Family:
    """The family that `config` (a parsed `config.json`) names; ValueError for one not served."""
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(FAMILIES)
        raise ValueError(f"config.json: model_type {model_type!r} is not served; {known} are")
    return family


def check_keys(config: Mapping[str, object], family: Family) -> None:
    """ValueError for the first key that is unknown, or that would change the computation."""
    for key, value in config.items():
        if family.knows(key) or key in HARMLESS_KEYS:
            continue
        if key not in OFF_VALUES:
            raise ValueError(
                f"config.json: {key!r} is not known for model_type {config['model_type']!r}, so it "
                "may change the computation"
            )
        if value not in OFF_VALUES[key]:
            raise ValueError(f"config.json: {key}={value!r} is not supported")
