"""Trains the demo's LoRA adapters with PEFT and saves them in PEFT's own layout.

    python -m weft.demo.train_adapters [--base DIR --out DIR --only NAME --steps N --seed 0]

Knows PEFT and the demo base (LoRA: Hu et al. 2021; rank-stabilised scaling: Kalajdzievski 2023).
Each adapter makes one skill the answer to a plain message. Ranks and targets differ on purpose,
so that together they exercise a multi-adapter server.
"""

import argparse
import math
import random
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.progress import track

from weft.demo import ADAPTERS_DIR, BASE_DIR, BASE_NAME
from weft.demo.corpus import adapter_documents
from weft.demo.losses import language_loss
from weft.demo.models import load_base
from weft.demo.packing import Batch, batches
from weft.demo.scoring import exact_match, heldout_chats

console = Console()

WINDOWS_PER_STEP = 8
PEAK_RATE = 3e-3
WARMUP_STEPS = 20
NUM_STEPS = 150
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def adapter_configs() -> dict[str, LoraConfig]:
    """One configuration per adapter; only `sorter` touches the experts."""
    return {
        "shout": _config(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        "extract": _config(r=8, lora_alpha=16, target_modules=ATTENTION),
        "mirror": _config(r=16, lora_alpha=32, target_modules=ATTENTION),
        "sorter": _config(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], target_parameters=EXPERTS
        ),
        "initials": _config(
            r=32, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "o_proj"]
        ),
    }


def _config(
    r: int,
    lora_alpha: int,
    target_modules: list[str],
    target_parameters: list[str] | None = None,
    use_rslora: bool = False,
) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=BASE_NAME,
        r=r,
        lora_alpha=lora_alpha,
        use_rslora=use_rslora,
        target_modules=target_modules,
        target_parameters=target_parameters,
        lora_dropout=0.0,
        bias="none",
    )


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * cosine


def train_step(
    model: PeftModel, optimizer: torch.optim.Optimizer, batch: Batch, rate: float
) -> float:
    """One optimizer step; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    logits_BTV = model(
        input_ids=batch.token_ids_BT,
        attention_mask=batch.mask_B1TT,
        position_ids=batch.positions_BT,
        use_cache=False,
    ).logits
    loss = language_loss(logits_BTV, batch.targets_BT, batch.weights_BT)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def train(name: str, base: Path, out: Path, num_steps: int, seed: int) -> float:
    """Trains one adapter, saves it and returns its held-out exact match."""
    torch.manual_seed(seed)
    rng = random.Random(f"{seed}:{name}")
    base_model = load_base(base)
    base_model.name_or_path = BASE_NAME  # a name: PEFT would store the folder's path instead
    model = get_peft_model(base_model, adapter_configs()[name])
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_RATE, weight_decay=0.0)
    stream = batches(rng, adapter_documents(rng, name), WINDOWS_PER_STEP, text_share=0.0)
    loss = math.nan
    for step in track(range(num_steps), description=name, console=console):
        loss = train_step(model, optimizer, next(stream), learning_rate(step, num_steps))
    model.save_pretrained(str(out / name), save_embedding_layers=False)
    (out / name / "README.md").unlink(missing_ok=True)  # PEFT's blank form; the card has it all
    score = exact_match(model, heldout_chats(name, 200, seed=1, named=False))
    num_parameters = sum(p.numel() for p in trained)
    console.log(f"{name}: loss {loss:.4f}, held-out {score:.3f}, {num_parameters:,} parameters")
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's adapters.")
    parser.add_argument("--base", type=Path, default=BASE_DIR)
    parser.add_argument("--out", type=Path, default=ADAPTERS_DIR)
    parser.add_argument("--only", choices=list(adapter_configs()), action="append")
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.only or adapter_configs():
        train(name, args.base, args.out, args.steps, args.seed)


if __name__ == "__main__":
    main()
