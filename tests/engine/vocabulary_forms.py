"""Forms with an embedding, a head or tokens of their own; see `forms`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

NUM_ADDED = 11


def resized(num_added: int, model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """`model` with so many tokens more, or fewer, of rows as large as the others'."""
    if num_added == 0:
        return model
    vocab_size = model.config.vocab_size
    model.resize_token_embeddings(vocab_size + num_added, mean_resizing=False)
    generator = torch.Generator().manual_seed(1000 + seed)
    head: Any = model.get_submodule("lm_head")
    matrices = [model.get_input_embeddings().weight, head.weight]
    with torch.no_grad():
        for matrix in matrices:
            added = matrix[vocab_size:]
            added.normal_(0.0, matrix.shape[1] ** -0.5, generator=generator)
    return model


class Vocabulary:
    """How a form of `num_added` tokens is built, and who says what is right; `keys` are
    `LoraConfig`'s."""

    def __init__(self, num_added: int = 0, **keys: Any) -> None:
        self.num_added, self.keys = num_added, keys

    def build(self, model: PreTrainedModel, folder: Path, seed: int) -> None:
        peft_model = get_peft_model(
            resized(self.num_added, model, seed), LoraConfig(r=4, **self.keys)
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_embedding" in name:
                    parameter.normal_(0.0, 0.3, generator=generator)
                elif "lora_" in name:
                    size = 0.4 * parameter.shape[-1] ** -0.5
                    parameter.normal_(0.0, size, generator=generator)
                elif "modules_to_save" in name:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.5 * parameter.shape[-1] ** -0.5 * noise)
        peft_model.save_pretrained(str(folder))

    def load(self, model: PreTrainedModel, folder: Path) -> Any:
        return PeftModel.from_pretrained(resized(self.num_added, model), str(folder))


DENSE, TIED = "llama, biases, llama3", "llama, tied, wide heads, linear"
BOTH_ENDS = ["embed_tokens", "lm_head"]
EMBEDDING, Q = ["embed_tokens"], ["q_proj"]

VOCABULARY_FORMS: dict[str, tuple[str, Vocabulary]] = {
    "factors of the embedding": (DENSE, Vocabulary(target_modules=[*EMBEDDING, "v_proj"])),
    "factors of both ends": (DENSE, Vocabulary(target_modules=BOTH_ENDS, lora_alpha=6)),
    "both ends saved": (DENSE, Vocabulary(target_modules=Q, modules_to_save=BOTH_ENDS)),
    "tokens added": (DENSE, Vocabulary(NUM_ADDED, target_modules=Q)),
    "tokens added, factors of both ends": (
        DENSE, Vocabulary(NUM_ADDED, target_modules=[*BOTH_ENDS, "k_proj"]),
    ),
    "tokens added, both ends saved": (
        DENSE, Vocabulary(NUM_ADDED, target_modules=Q, modules_to_save=BOTH_ENDS),
    ),
    "tokens taken away": (DENSE, Vocabulary(-NUM_ADDED, target_modules=Q)),
    "one matrix, factors of the embedding": (TIED, Vocabulary(target_modules=EMBEDDING)),
    "one matrix, factors of both ends": (TIED, Vocabulary(target_modules=BOTH_ENDS)),
    "one matrix, factors tied": (
        TIED, Vocabulary(target_modules=EMBEDDING, ensure_weight_tying=True),
    ),
    "one matrix, the head saved": (
        TIED, Vocabulary(target_modules=Q, modules_to_save=["lm_head"]),
    ),
    "one matrix, the embedding saved": (
        TIED, Vocabulary(target_modules=Q, modules_to_save=EMBEDDING),
    ),
    "one matrix, saved and tied": (
        TIED, Vocabulary(target_modules=Q, modules_to_save=EMBEDDING, ensure_weight_tying=True),
    ),
    "one matrix, tokens added": (TIED, Vocabulary(NUM_ADDED, target_modules=Q)),
    "one matrix, tokens added, factors of the embedding": (
        TIED, Vocabulary(NUM_ADDED, target_modules=EMBEDDING),
    ),
    "one matrix, tokens added, factors tied": (
        TIED, Vocabulary(NUM_ADDED, target_modules=BOTH_ENDS, ensure_weight_tying=True),
    ),
    "one matrix, tokens added, the embedding saved": (
        TIED, Vocabulary(NUM_ADDED, target_modules=Q, modules_to_save=EMBEDDING),
    ),
}  # fmt: skip
