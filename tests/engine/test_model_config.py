"""What a `config.json` may say, and that everything else is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from weft.engine.model.config import create_model_config, read_hf_config
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
    ],
)
def test_what_would_change_the_computation_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key}=.* is not supported"):
        create_model_config(DENSE | {key: value})


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
