"""Random models and adapters for benchmarks and tests."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils import logging as transformers_logging

from weft_adapters.sites import ATTENTION_PROJECTIONS, BaseSpec

VOCAB_SIZE = 8192
TINY_VOCAB_SIZE = 320
RANKS = (8, 16, 32)


def quiet_libraries() -> None:
    """Progress bars and notices of transformers and PEFT would drown the figures."""
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    progress_bars: Any = transformers_logging  # its functions have no annotations
    progress_bars.disable_progress_bar()


@contextmanager
def third_party_warnings_ignored() -> Iterator[None]:
    """PEFT and transformers warn of things that are done here on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 256 bytes and two control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


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


def create_tiny_base(folder: Path, kind: str) -> None:
    """A base of 3 layers, hidden 96 and 320 tokens, "dense" or "moe" (12 experts, 3 a token), with
    weights so large that logits differ clearly from token to token."""
    sizes: dict[str, Any] = {
        "vocab_size": TINY_VOCAB_SIZE,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    experts: dict[str, Any] = {
        "num_experts": 12,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
    }
    if kind == "dense":
        model: PreTrainedModel = Qwen3ForCausalLM(Qwen3Config(**sizes))
    else:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **experts, norm_topk_prob=True))
    spread_weights(model).save_pretrained(folder)
    save_tokenizer(folder)


def spread_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights large enough that logits differ clearly from token to token."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, 0.3, generator=generator)  # biases
    return model


def tiny_targets(kind: str, number: int) -> dict[str, Any]:
    """PEFT's arguments for the `number`-th adapter of a tiny base: ranks and targets vary."""
    rank = (4, 8, 16, 24)[number % 4]
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    dense: list[dict[str, Any]] = [
        {"target_modules": attention},
        {"target_modules": "all-linear"},
        {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
    ]
    moe: list[dict[str, Any]] = [
        {"target_modules": attention},
        {"target_modules": [], "target_parameters": both},
        {"target_modules": ["q_proj", "v_proj"], "target_parameters": both[1:]},
    ]
    return {"r": rank, "lora_alpha": 2 * rank, **(dense if kind == "dense" else moe)[number % 3]}


def save_peft_adapter(base_dir: Path, folder: Path, seed: int, **lora: Any) -> None:
    """An adapter made and saved by PEFT, with random factors large enough to change most tokens."""
    with third_party_warnings_ignored():
        model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        peft_model = get_peft_model(model, LoraConfig(**lora))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_magnitude_vector" in name:
                    parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
                elif "lora_" in name:
                    parameter.normal_(0.0, 0.4 * parameter.shape[-1] ** -0.5, generator=generator)
        peft_model.save_pretrained(str(folder))


def write_adapter(base: BaseSpec, folder: Path, seed: int, rank: int) -> None:
    """Random factors on the attention projections, in the files that PEFT writes, without a model:
    for adapters by the thousand."""
    random = np.random.default_rng(seed)
    tensors = {}
    for site in base.sites():
        if site.projection in ATTENTION_PROJECTIONS:
            num_in, num_out = base.shape(site)
            module = f"base_model.model.model.layers.{site.layer}.self_attn.{site.projection}"
            a, b = random.standard_normal((rank, num_in)), random.standard_normal((num_out, rank))
            tensors[f"{module}.lora_A.weight"] = a.astype(np.float32) * 0.02
            tensors[f"{module}.lora_B.weight"] = b.astype(np.float32) * 0.02
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ATTENTION_PROJECTIONS))
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
