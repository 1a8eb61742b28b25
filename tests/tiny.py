"""A base of one layer, as its config says, and PEFT adapters for it, without torch."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save

BASE = "tiny"
BASE_DIGEST = "sha256:" + "ba" * 32
HF_CONFIG: dict[str, object] = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 264,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
}


def create_lora(seed: int = 0, rank: int = 4, **config: object) -> dict[str, bytes]:
    """The files of an adapter on the q_proj."""
    rng = np.random.default_rng(seed)
    site_name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{site_name}.lora_A.weight": rng.normal(size=(rank, 16)).astype(np.float32),
        f"{site_name}.lora_B.weight": rng.normal(size=(16, rank)).astype(np.float32),
    }
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        **config,
    }
    return {
        "adapter_config.json": json.dumps(adapter_config).encode(),
        "adapter_model.safetensors": save(tensors),
    }
