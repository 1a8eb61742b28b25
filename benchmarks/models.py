"""Random models and adapters for benchmarks: weights do not matter for speed, shapes do."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

VOCAB_SIZE = 8192
RANKS = (8, 16, 32)


def quiet_libraries() -> None:
    """Progress bars and notices of transformers and PEFT would drown the figures."""
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def create_dense_base(folder: Path) -> None:
    """Qwen3 shape: hidden 512, 8 layers, 8 heads and 2 KV heads of 64, inner 1536; float32."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))


def create_adapters(base_dir: Path, root: Path, count: int) -> list[Path]:
    """PEFT adapters on all linear layers, ranks 8, 16, 32 in turn."""
    folders = []
    for i in range(count):
        torch.manual_seed(i + 1)
        model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        rank = RANKS[i % len(RANKS)]
        peft_model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.02)
        folders.append(root / f"adapter-{i}")
        peft_model.save_pretrained(str(folders[-1]))
    return folders
