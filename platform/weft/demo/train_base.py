"""Trains the demo base, a small Qwen3-MoE, and writes it in Hugging Face layout.

    python -m weft.demo.train_base --out DIR [--minutes N --seed 0]

Knows transformers' Qwen3-MoE (Qwen Team 2025) and our losses; knows nothing of adapters. The
learning rate follows a cosine over the time budget, so a run ends where its budget ends.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from weft.demo import tokens
from weft.demo.corpus import base_documents
from weft.demo.losses import (
    BALANCE_COEFFICIENT,
    Z_COEFFICIENT,
    language_loss,
    router_losses,
)
from weft.demo.packing import WINDOW, Batch, batches
from weft.demo.scoring import exact_match, heldout_chats
from weft.demo.skills import SKILLS

console = Console()

WINDOWS_PER_STEP = 8
PEAK_RATE = 1.5e-3
FINAL_SHARE = 0.02
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.05
TEXT_SHARE = 0.05
SAVE_EVERY_S = 240.0
SCORE_EVERY_S = 90.0


def create_config() -> Qwen3MoeConfig:
    """The base's shape: 4 layers, 8 experts of which each token takes 2."""
    shape: dict[str, Any] = {
        "vocab_size": tokens.VOCAB_SIZE,
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 384,
        "moe_intermediate_size": 192,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": tokens.MAX_POSITIONS,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "router_aux_loss_coef": BALANCE_COEFFICIENT,
        "bos_token_id": None,
        "eos_token_id": tokens.END_ID,
        "pad_token_id": tokens.PAD_ID,
    }
    return Qwen3MoeConfig(**shape)


@dataclass
class Progress:
    """What a run has done so far; written beside the weights as `training.json`."""

    steps: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    load_LE: list[list[float]] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)


def create_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019); norms are not decayed."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, budget_used: float) -> float:
    """Linear warm-up by step, then a cosine over the share of the budget that is used."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(budget_used, 1.0)))
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_RATE * warmup * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)


def training_loss(model: Qwen3MoeForCausalLM, batch: Batch) -> tuple[Tensor, Progress]:
    """The sum that is trained on, and its parts for the log."""
    output = model.model(  # the body alone: our losses replace transformers' own
        input_ids=batch.token_ids_BT,
        attention_mask=batch.mask_B1TT,
        position_ids=batch.positions_BT,
        output_router_logits=True,
        use_cache=False,
    )
    logits_BTV = model.lm_head(output.last_hidden_state)
    language = language_loss(logits_BTV, batch.targets_BT, batch.weights_BT)
    router = router_losses(output.router_logits, model.config.num_experts_per_tok)
    loss = language + BALANCE_COEFFICIENT * router.balance + Z_COEFFICIENT * router.z
    losses = {"lm": language.item(), "balance": router.balance.item(), "z": router.z.item()}
    return loss, Progress(losses=losses, load_LE=router.load_LE.tolist())


def train_step(
    model: Qwen3MoeForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch, rate: float
) -> Progress:
    """One optimizer step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, parts = training_loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return parts


def save(model: Qwen3MoeForCausalLM, progress: Progress, out: Path) -> None:
    """Weights in bfloat16, tokenizer, configs and the run's figures."""
    out.mkdir(parents=True, exist_ok=True)
    half = Qwen3MoeForCausalLM(create_config())
    half.load_state_dict(model.state_dict())
    torch.nn.Module.to(half, torch.bfloat16)
    half.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=[tokens.END_ID, tokens.END_OF_TEXT_ID],
        pad_token_id=tokens.PAD_ID,
        do_sample=False,
        max_new_tokens=128,
    )
    half.save_pretrained(out)
    name_experts(out / "config.json")
    tokens.write_tokenizer(out)
    (out / "training.json").write_text(json.dumps(vars(progress), indent=1) + "\n")


def name_experts(path: Path) -> None:
    """Adds `num_experts`, the published Qwen3-MoE key; transformers 5 writes its alias only."""
    config = json.loads(path.read_text())
    config["num_experts"] = config["num_local_experts"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def report(progress: Progress, rate: float) -> None:
    """One line of progress."""
    losses = " ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
    flat = [load for loads in progress.load_LE for load in loads]
    scores = " ".join(f"{name} {value:.2f}" for name, value in progress.accuracy.items())
    console.log(
        f"step {progress.steps} {progress.tokens / 1e6:.2f}M tokens {losses}"
        f" load {min(flat):.3f}..{max(flat):.3f} lr {rate:.1e} | {scores}"
    )


def score(model: Qwen3MoeForCausalLM, num_prompts: int = 48) -> dict[str, float]:
    """Held-out exact match of each skill when the system message names it."""
    return {
        name: exact_match(model, heldout_chats(name, num_prompts, seed=1, named=True))
        for name in SKILLS
    }


def train(out: Path, minutes: float, seed: int) -> Progress:
    """Trains for `minutes` and leaves the model in `out`."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model: Qwen3MoeForCausalLM = Qwen3MoeForCausalLM._from_config(  # type: ignore[no-untyped-call]
        create_config(), experts_implementation="grouped_mm", attn_implementation="sdpa"
    )
    optimizer = create_optimizer(model)
    progress = Progress()
    started = last_score = last_save = time.monotonic()
    for batch in batches(rng, base_documents(rng), WINDOWS_PER_STEP, TEXT_SHARE):
        now = time.monotonic()
        progress.elapsed_s = now - started
        if progress.elapsed_s > 60 * minutes:
            break
        rate = learning_rate(progress.steps, progress.elapsed_s / (60 * minutes))
        parts = train_step(model, optimizer, batch, rate)
        progress.steps += 1
        progress.tokens += batch.num_tokens
        progress.losses, progress.load_LE = parts.losses, parts.load_LE
        if now - last_score > SCORE_EVERY_S:
            progress.accuracy, last_score = score(model), now
        if progress.steps % 50 == 0:
            report(progress, rate)
        if now - last_save > SAVE_EVERY_S:
            save(model, progress, out)
            last_save = now
    progress.accuracy = score(model, num_prompts=200)
    report(progress, 0.0)
    save(model, progress, out)
    return progress


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo base model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    console.log(f"training for {args.minutes} minutes, windows of {WINDOW} tokens")
    train(args.out, args.minutes, args.seed)


if __name__ == "__main__":
    main()
