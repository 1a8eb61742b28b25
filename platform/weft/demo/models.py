"""Loads the demo base and its adapters with transformers and PEFT. Knows no data, no scores."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import Qwen3MoeForCausalLM

from weft.demo import ADAPTERS_DIR, BASE_DIR


def load_base(folder: Path = BASE_DIR) -> Qwen3MoeForCausalLM:
    """The base in float32, with the expert kernel that is quickest on a CPU."""
    model: Qwen3MoeForCausalLM = Qwen3MoeForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        experts_implementation="grouped_mm",
        attn_implementation="sdpa",
    )
    torch.nn.Module.eval(model)
    return model


def load_adapter(name: str, base: Path = BASE_DIR, adapters: Path = ADAPTERS_DIR) -> PeftModel:
    """A fresh base with one adapter on it: PEFT cannot mix `target_parameters` adapters."""
    model: PeftModel = PeftModel.from_pretrained(load_base(base), str(adapters / name))
    torch.nn.Module.eval(model)
    return model
