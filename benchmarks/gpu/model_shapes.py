"""The models whose shapes the benches have: their `config.json` without the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.harness import Setting

LLAMA = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "intermediate_size": 6144, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 40960, "tie_word_embeddings": False, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
}  # fmt: skip
_SMALL = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48,
}  # fmt: skip
_SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@dataclass(frozen=True, slots=True)
class Model:
    """A shape; `has_all_sites`: adapters are on all linears, not on the attention's alone."""

    name: str
    has_all_sites: bool

    def raw(self, setting: Setting) -> dict[str, Any]:
        """Its `config.json`."""
        full = LLAMA if self.name.startswith("llama") else QWEN
        if not setting.is_tiny:
            return full
        return {**full, **_SMALL, **(_SMALL_EXPERTS if "num_experts" in full else {})}

    @property
    def sites(self) -> str:
        """Where adapters are, as rows say it."""
        return "all linear" if self.has_all_sites else "attention"

    @property
    def num_sites(self) -> int:
        """Of the whole model; what shares an input (q, k and v; gate and up) counts as one."""
        full: dict[str, Any] = LLAMA if self.name.startswith("llama") else QWEN
        return int(full["num_hidden_layers"]) * (4 if self.has_all_sites else 2)


LLAMA_3_8B = Model("llama-3-8b", has_all_sites=True)
QWEN3_30B_A3B = Model("qwen3-30b-a3b", has_all_sites=False)
# the ranks of adapters, given to them in turn, by the name that rows have
RANKS: dict[str, tuple[int, ...]] = {"16": (16,), "mixed": (8, 16, 64), "8": (8,), "64": (64,)}
