"""Random bases of every family of `weft_adapters.families`, two sizes each, with adapters and
requests for them.

A new family takes a line in `CASES`; the sizes differ in what the family's flags can be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from weft.messages import EngineRequest, SamplingParams

NUM_TOKENS = 128
# beyond the windows, and with the tokens beyond the lengths before scaling; one that is neither
PROMPT_LENGTHS = (2, 53, 75)
NUM_SHARED = 37  # tokens with which all but the shortest begin alike

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

Lora = dict[str, Any]
ALL_LINEAR: dict[str, Lora] = {"all-linear": {"r": 12, "target_modules": "all-linear"}}
EXPERTS: dict[str, Lora] = {
    "modules": {"r": 4, "target_modules": [*ATTENTION, "down_proj"], "lora_alpha": 6},
    "parameters": {"r": 4, "target_modules": ["v_proj"], "target_parameters": BOTH},
}

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FINE_YARN = {
    **YARN, "beta_fast": 8.0, "beta_slow": 0.5, "truncate": False, "mscale": 0.7,
    "mscale_all_dim": 1.3,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model of `model_type`; `sizes` go to transformers' config on top of `SIZES`."""

    model_type: str
    sizes: dict[str, Any]
    adapters: dict[str, Lora] = field(default_factory=lambda: ALL_LINEAR)
    save: dict[str, Any] = field(default_factory=dict)


SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WIDE = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}
SHARDED = {"max_shard_size": "60KB"}

CASES = {
    "llama, biases, llama3": Case(
        "llama",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "llama, tied, wide heads, linear": Case(
        "llama",
        {**WIDE, "head_dim": 24, "tie_word_embeddings": True, "rope_parameters": LINEAR},
        save=SHARDED,
    ),
    "mistral, window": Case("mistral", {"sliding_window": 24, "num_key_value_heads": 1}),
    "mistral, yarn": Case(
        "mistral",
        {**WIDE, "sliding_window": None, "head_dim": 32, "rope_parameters": YARN},
        save=SHARDED,
    ),
    "qwen2, window from a layer on": Case(
        "qwen2",
        {**WIDE, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1,
         "tie_word_embeddings": True},
    ),
    "qwen2, yarn": Case("qwen2", {"rope_parameters": FINE_YARN}, save=SHARDED),
    "qwen3, window by layer": Case(
        "qwen3",
        {**WIDE, "head_dim": 24, "use_sliding_window": True, "sliding_window": 20,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen3, biases, tied, yarn": Case(
        "qwen3",
        {"head_dim": 32, "attention_bias": True, "tie_word_embeddings": True,
         "rope_parameters": {**YARN, "attention_factor": 1.3}},
        save=SHARDED,
    ),
    "mixtral": Case("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, EXPERTS),
    "mixtral, window": Case(
        "mixtral",
        {**WIDE, "num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 20,
         "tie_word_embeddings": True, "num_key_value_heads": 1},
        EXPERTS,
        SHARDED,
    ),
    "olmoe": Case(
        "olmoe", {"num_experts": 6, "num_experts_per_tok": 2, "num_key_value_heads": 4}, EXPERTS
    ),
    "olmoe, clipped, normalised": Case(
        "olmoe",
        {**WIDE, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
         "clip_qkv": 0.7, "attention_bias": True, "rope_parameters": LINEAR},
        EXPERTS,
        SHARDED,
    ),
    "qwen2_moe": Case(
        "qwen2_moe",
        {**WIDE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
         "mlp_only_layers": [1], "shared_expert_intermediate_size": 56},
        EXPERTS | ALL_LINEAR,
    ),
    "qwen2_moe, window, normalised": Case(
        "qwen2_moe",
        {"num_hidden_layers": 4, "num_experts": 6, "num_experts_per_tok": 3,
         "moe_intermediate_size": 24, "norm_topk_prob": True, "qkv_bias": False,
         "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2,
         "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
        EXPERTS | ALL_LINEAR,
        SHARDED,
    ),
    "qwen3_moe": Case(
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
         "head_dim": 24, "rope_parameters": LLAMA3},
        EXPERTS,
    ),
    "qwen3_moe, window, normalised": Case(
        "qwen3_moe",
        {**WIDE, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
         "norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True,
         "use_sliding_window": True, "sliding_window": 20},
        EXPERTS,
        SHARDED,
    ),
}  # fmt: skip


def create_model(case: Case) -> PreTrainedModel:
    config = AutoConfig.for_model(case.model_type, **SIZES | case.sizes)
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    return model


def create_requests(digests: Mapping[str, str]) -> Iterator[EngineRequest]:
    """Greedy requests as `<adapter>:<length>`: the shortest for the base, the others for each of
    the adapters, `digests` by name."""
    rng = random.Random(0)
    beginning = tuple(rng.randrange(256) for _ in range(NUM_SHARED))
    sampling = SamplingParams(NUM_TOKENS, temperature=0, ignore_eos=True)
    shortest, *longer = PROMPT_LENGTHS
    for name in ("", *digests):
        for length in longer if name else (shortest,):
            own = tuple(rng.randrange(256) for _ in range(length))
            prompt = (beginning + own)[:length]
            yield EngineRequest(f"{name}:{length}", "tenant", prompt, sampling, digests.get(name))


def adapter_of(request: EngineRequest) -> str | None:
    return request.request_id.partition(":")[0] or None
