"""One `config.json` of each family as it is published: every key of it is understood."""

from __future__ import annotations

from typing import Any

import pytest

from weft.engine.model.config import create_model_config
from weft_adapters.families import FAMILIES
from weft_adapters.sites import BaseSpec, Site
from weft_kernels.rotary import Rope

COMMON: dict[str, Any] = {
    "architectures": ["SomethingForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": [2, 3], "hidden_act": "silu", "initializer_range": 0.02,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "use_cache": True, "rms_norm_eps": 1e-05,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "use_sliding_window": False, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "vocab_size": 151936,
}  # fmt: skip
QWEN_MOE: dict[str, Any] = {
    **QWEN, "decoder_sparse_step": 1, "output_router_logits": False, "router_aux_loss_coef": 0.001,
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": {  # Llama-3.1-8B-Instruct
        "attention_bias": False, "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "vocab_size": 128256,
    },
    "mistral": {  # Mistral-7B-v0.1
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000,
    },
    "qwen2": {  # Qwen2.5-7B-Instruct, with the scaling that its page tells to add
        **QWEN, "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768,
        "max_window_layers": 28, "num_attention_heads": 28, "num_hidden_layers": 28,
        "num_key_value_heads": 4, "sliding_window": 131072, "vocab_size": 152064,
        "rope_scaling": {
            "factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn",
        },
    },
    "qwen3": {  # Qwen3-8B
        **QWEN, "attention_bias": False, "head_dim": 128, "hidden_size": 4096,
        "intermediate_size": 12288, "max_position_embeddings": 40960, "max_window_layers": 36,
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "rope_scaling": None, "sliding_window": None,
    },
    "mixtral": {  # Mixtral-8x7B-v0.1
        "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "vocab_size": 32000,
    },
    "olmoe": {  # OLMoE-1B-7B-0924
        "attention_bias": False, "clip_qkv": None, "hidden_size": 2048, "intermediate_size": 1024,
        "max_position_embeddings": 4096, "norm_topk_prob": False, "num_attention_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
        "num_key_value_heads": 16, "output_router_logits": False, "pad_token_id": 1,
        "rope_scaling": None, "rope_theta": 10000.0, "router_aux_loss_coef": 0.01,
        "vocab_size": 50304,
    },
    "qwen2_moe": {  # Qwen1.5-MoE-A2.7B
        **QWEN_MOE, "hidden_size": 2048, "intermediate_size": 5632,
        "max_position_embeddings": 8192, "max_window_layers": 21, "moe_intermediate_size": 1408,
        "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 60,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16,
        "shared_expert_intermediate_size": 5632, "sliding_window": 32768,
    },
    "qwen3_moe": {  # Qwen3-30B-A3B
        **QWEN_MOE, "attention_bias": False, "head_dim": 128, "hidden_size": 2048,
        "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
        "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "rope_scaling": None,
        "sliding_window": None,
    },
}  # fmt: skip


def published(model_type: str) -> dict[str, Any]:
    return {**COMMON, **PUBLISHED[model_type], "model_type": model_type}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_key_is_understood(model_type: str) -> None:
    config = create_model_config(published(model_type))
    base = BaseSpec.from_config(published(model_type), "d")
    assert config.head_dim == 128
    assert config.windows == (4096 if model_type == "mistral" else None,) * config.num_layers
    assert base.shape(Site(0, "q_proj")) == (config.hidden_size, config.q_size)
    assert base.shape(Site(0, "k_proj")) == (config.hidden_size, config.kv_size)
    is_sparse = "num_experts_per_tok" in PUBLISHED[model_type]
    assert config.moe_layers == base.moe_layers == set(range(config.num_layers * is_sparse))


def test_flags_are_the_familys() -> None:
    configs = {name: create_model_config(published(name)) for name in FAMILIES}

    def those(flag: str, value: object = True) -> set[str]:
        return {name for name, config in configs.items() if getattr(config, flag) == value}

    assert those("qkv_bias") == {"qwen2", "qwen2_moe"}
    assert those("o_bias") == those("mlp_bias") == set()
    assert those("qk_norm", "head") == {"qwen3", "qwen3_moe"}
    assert those("qk_norm", "whole") == {"olmoe"}
    assert those("norm_topk_prob") == {"mixtral", "qwen3_moe"}
    assert those("shared_intermediate_size", 5632) == {"qwen2_moe"}


def test_positions_are_as_published() -> None:
    llama, qwen2 = (create_model_config(published(name)) for name in ("llama", "qwen2"))
    assert llama.rope == Rope(500000.0, "llama3", factor=8.0, original_max_len=8192)
    assert (qwen2.rope.kind, qwen2.rope.original_max_len) == ("yarn", 32768)
    assert qwen2.rope.attention_factor == pytest.approx(1.1386, abs=1e-4)
    assert qwen2.max_position_embeddings == 131072
