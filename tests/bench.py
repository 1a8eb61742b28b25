"""Random base models in Hugging Face layout with adapters made by PEFT, and engines on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.models import (
    save_peft_adapter,
    save_tokenizer,
    spread_weights,
    third_party_warnings_ignored,
)
from tests.oracle import Oracle
from transformers import (
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from weft.engine.build import BuiltEngine, build_engine
from weft.engine.config import MIB, EngineConfig
from weft.engine.model.config import create_model_config, read_hf_config
from weft.engine.offline import register_folder
from weft.engine.req import Req
from weft.messages import EngineRequest
from weft_adapters.store import FolderStore

VOCAB_SIZE = 320


def create_dense_model() -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    return Qwen3ForCausalLM(config)


def create_moe_model() -> PreTrainedModel:
    unannotated: dict[str, Any] = {"head_dim": 24}
    config = Qwen3MoeConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=12,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        **unannotated,
        attention_bias=True,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    return Qwen3MoeForCausalLM(config)


@dataclass
class Bench:
    """A base on disk with its oracle, adapters and a way to build engines on it."""

    oracle: Oracle
    root: Path

    @property
    def base_dir(self) -> Path:
        return self.oracle.base_dir

    def build(self, **options: Any) -> tuple[BuiltEngine, dict[str, str]]:
        """A fresh engine with every adapter in its store; digests by adapter name."""
        settings = {
            "check_integrity": True,
            "dtype": "float32",
            "device": "cpu",
            # all of these adapters take less; a pool is zeroed, which takes time
            "adapter_bytes": 16 * MIB,
            **options,
        }
        config = EngineConfig(self.base_dir, self.root / "store", **settings)
        built = build_engine(config)
        store = FolderStore(config.adapters_dir)
        digests = {
            name: register_folder(built, store, folder)
            for name, folder in self.oracle.adapter_dirs.items()
        }
        return built, digests

    def block_bytes(self) -> int:
        """Bytes of one KV block of 16 tokens, float32."""
        config = read_hf_config(self.base_dir)
        model = create_model_config(config)
        return 2 * model.num_layers * 16 * model.kv_size * 4

    def first_step_logits(
        self, built: BuiltEngine, requests: Sequence[EngineRequest]
    ) -> dict[str, torch.Tensor]:
        """The logits after each prompt, all of them in one step: by request, float32 `[V]`."""
        engine = built.engine
        for request in requests:
            engine.scheduler.add(Req(request, 0.0))
        plan = engine.scheduler.schedule()
        assert len(plan.scheduled) == len(requests), "all requests fit one step"
        logits = engine._runner.logits(plan, engine.adapters.held)
        return {req.request_id: row for req, row in logits.items()}


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def create_bench(
    root: Path, model: PreTrainedModel, adapters: Mapping[str, dict[str, Any]], **save: Any
) -> Bench:
    """PEFT's arguments by adapter's name; `save` are `save_pretrained`'s."""
    base_dir = root / "base"
    with third_party_warnings_ignored():
        spread_weights(model).save_pretrained(base_dir, **save)
    save_tokenizer(base_dir)
    dirs = {name: root / name for name in adapters}
    for seed, (name, lora) in enumerate(adapters.items()):
        save_peft_adapter(base_dir, dirs[name], seed, **lora)
    return Bench(Oracle(base_dir, dirs), root)


def create_dense_bench(root: Path) -> Bench:
    """Qwen3 with adapters of ranks 4 to 64 on different targets."""
    return create_bench(
        root,
        create_dense_model(),
        {
            "small": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
            "all-linear": {"r": 16, "target_modules": "all-linear", "lora_alpha": 24},
            "mlp": {"r": 32, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
            "wide": {"r": 64, "target_modules": ATTENTION, "use_rslora": True, "lora_alpha": 8},
            "patterns": {
                "r": 8,
                "target_modules": [*ATTENTION, "down_proj"],
                "rank_pattern": {"layers.1.self_attn.q_proj": 24, "down_proj": 12},
                "alpha_pattern": {"o_proj": 3},
                "layers_to_transform": [0, 1],
            },
        },
    )


def create_moe_bench(root: Path) -> Bench:
    """Qwen3-MoE with a dense layer, biases, and adapters that touch experts."""
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return create_bench(
        root,
        create_moe_model(),
        {
            "attention": {"r": 8, "target_modules": ATTENTION},
            "experts": {"r": 4, "target_modules": [], "target_parameters": both},
            "mixed": {"r": 16, "target_modules": ["q_proj"], "target_parameters": both[:1]},
            "down": {"r": 8, "target_modules": ["o_proj"], "target_parameters": both[1:]},
            "wide": {"r": 64, "target_modules": ["v_proj", "down_proj"]},
        },
    )
