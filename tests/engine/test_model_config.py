"""What a `config.json` may say, and that everything else is refused by name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from weft.engine.model.config import create_model_config, read_hf_config
from weft_adapters.families import COMMON_DEFAULTS, FAMILIES, HARMLESS_KEYS, REQUIRED_KEYS
from weft_kernels.rotary import Rope

DENSE: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": None,
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
MOE: dict[str, Any] = {
    **DENSE,
    "model_type": "qwen3_moe",
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [1],
}

SLIDING_FIRST = ["sliding_attention", *["full_attention"] * 3]


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}


def test_a_dense_model_is_read() -> None:
    config = create_model_config(DENSE)
    assert (config.q_size, config.kv_size, config.head_dim) == (96, 48, 24)
    assert config.rope == Rope(1e6)
    assert config.tie_word_embeddings
    assert config.num_experts == 0
    assert config.moe_layers == frozenset()


def test_a_model_of_experts_is_read() -> None:
    config = create_model_config(MOE)
    assert (config.num_experts, config.num_experts_per_tok) == (12, 3)
    assert config.norm_topk_prob
    # every second layer is sparse (1 and 3), but for layer 1
    assert config.moe_layers == {3}


def test_both_spellings_of_transformers_4_and_5_are_read() -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    assert create_model_config(without(DENSE, "rope_theta") | {"rope_parameters": rope}) \
        .rope == Rope(5e5)  # fmt: skip
    renamed = without(MOE, "num_experts") | {"num_local_experts": 12}
    assert create_model_config(renamed).num_experts == 12


def test_what_may_be_left_out_has_the_meaning_of_transformers() -> None:
    least = {k: v for k, v in DENSE.items() if k not in (
        "head_dim", "attention_bias", "tie_word_embeddings", "rms_norm_eps", "rope_theta",
        "use_sliding_window", "sliding_window", "rope_scaling", "hidden_act")}  # fmt: skip
    config = create_model_config(least | {"num_key_value_heads": None})
    assert (config.head_dim, config.num_kv_heads) == (128, 4)
    assert create_model_config(least | {"head_dim": None}).head_dim == 16
    assert (config.rms_norm_eps, config.rope) == (1e-6, Rope(10000.0))
    assert not config.qkv_bias
    assert not config.o_bias
    assert not config.tie_word_embeddings


def test_yarn_reaches_the_length_that_it_scales_to() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert create_model_config(DENSE | {"rope_scaling": yarn}).max_position_embeddings == 2048
    long = DENSE | {"rope_scaling": yarn, "max_position_embeddings": 4096}
    assert create_model_config(long).max_position_embeddings == 4096
    linear = {"rope_type": "linear", "factor": 4.0}
    assert create_model_config(DENSE | {"rope_scaling": linear}).max_position_embeddings == 512


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", None, 3, ["llama"]])
def test_another_model_type_is_refused(model_type: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"model_type {model_type!r} is not served")):
        create_model_config(DENSE | {"model_type": model_type})


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings",
        "num_experts_per_tok", "moe_intermediate_size",
    ],
)  # fmt: skip
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}'"):
        create_model_config(without(MOE, key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("quantization_config", {"quant_method": "fp8"}),
        ("attention_dropout", 0.1),
        ("partial_rotary_factor", 0.5),
        ("mlp_bias", True),
        ("clip_qkv", 8.0),
        ("rope_interleaved", True),
        ("use_mrope", True),
        ("router_jitter_noise", 0.1),
        ("chunk_size_feed_forward", 2),
        ("is_encoder_decoder", True),
        ("add_cross_attention", True),
        ("tie_encoder_decoder", True),
        ("is_decoder", True),
        ("pruned_heads", {"0": [1]}),
    ],
)
def test_what_would_change_the_computation_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key}=.* is not supported"):
        create_model_config(DENSE | {key: value})


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("llama", "use_sliding_window", True),
        ("llama", "sliding_window", 4096),
        ("llama", "layer_types", ["sliding_attention"] * 4),
        ("mistral", "layer_types", ["full_attention"] * 4),
        ("mistral", "attention_bias", True),
        ("qwen2", "attention_bias", True),
    ],
)
def test_a_flag_of_another_family_is_refused(model_type: str, key: str, value: object) -> None:
    least = {key: DENSE[key] for key in REQUIRED_KEYS} | {"model_type": model_type}
    create_model_config(least | {"num_key_value_heads": 2})
    with pytest.raises(ValueError, match=f"{key}=.* is not supported"):
        create_model_config(least | {"num_key_value_heads": 2, key: value})


@pytest.mark.parametrize("key", ["auto_map", "dual_chunk_attention_config", "logit_scale"])
@pytest.mark.parametrize("value", [2, None])
def test_a_key_that_nobody_knows_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"'{key}' is not known"):
        create_model_config(DENSE | {key: value})


def test_what_changes_no_logit_is_accepted() -> None:
    harmless = dict.fromkeys(HARMLESS_KEYS, "anything") | {"max_window_layers": 28}
    assert create_model_config(DENSE | harmless) == create_model_config(DENSE)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    family, theirs = FAMILIES[model_type], CONFIG_MAPPING[model_type]
    defaults = {f.name: f.default for f in dataclasses.fields(theirs)}
    elsewhere = {"rope_theta": theirs.default_theta, "rope_scaling": None, "head_dim": None}
    for key in (*COMMON_DEFAULTS, *family.defaults):
        want = defaults[key] if key in defaults else elsewhere[key]
        assert family.default(key) == want, key


@pytest.mark.parametrize(
    ("model_type", "keys", "windows"),
    [
        ("llama", {}, (None,) * 4),
        ("mistral", {}, (4096,) * 4),
        ("mistral", {"sliding_window": None}, (None,) * 4),
        ("qwen3", {"sliding_window": 9}, (None,) * 4),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3}, (None, None, None, 4096)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None}, (None,) * 4),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 9, "layer_types": SLIDING_FIRST},
            (9, None, None, None),
        ),
        ("qwen2_moe", {"sliding_window": 0}, (None,) * 4),
        (
            "qwen2_moe",
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
            (9, None, None, None),
        ),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 9}, (9,) * 4),
    ],
)
def test_windows_are_by_layer(
    model_type: str, keys: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    known = {k: v for k, v in MOE.items() if FAMILIES[model_type].knows(k)}
    for key in ("use_sliding_window", "sliding_window"):
        known.pop(key, None)
    shared = {"shared_expert_intermediate_size": 8} if model_type == "qwen2_moe" else {}
    config = create_model_config({**known, **shared, "model_type": model_type, **keys})
    assert config.windows == windows


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_types", SLIDING_FIRST[:3]),
        ("layer_types", "full_attention"),
        ("layer_types", ["linear_attention"] * 4),
        ("sliding_window", 0),
        ("sliding_window", 2.5),
        ("use_sliding_window", 1),
        ("use_sliding_window", False),
        ("max_window_layers", -1),
    ],
)
def test_a_bad_window_is_refused_by_name(key: str, value: object) -> None:
    slides: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 9}
    if key != "max_window_layers":
        slides["layer_types"] = SLIDING_FIRST
    named = "layer_types" if value is False else key
    with pytest.raises(ValueError, match=named):
        create_model_config(DENSE | slides | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 3),
        ("hidden_size", "64"),
        ("num_hidden_layers", True),
        ("vocab_size", -1),
        ("rms_norm_eps", "1e-6"),
        ("tie_word_embeddings", 1),
        ("decoder_sparse_step", 0),
        ("num_experts_per_tok", 13),
        ("num_local_experts", 11),
        ("head_dim", 25),
        ("attention_bias", 1),
        ("norm_topk_prob", "yes"),
        ("rms_norm_eps", None),
        ("mlp_only_layers", "1"),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        create_model_config(MOE | {key: value})


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        read_hf_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    assert read_hf_config(tmp_path) == DENSE
