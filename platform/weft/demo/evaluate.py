"""Measures the base and each adapter on held-out plain prompts, and writes the model card.

    python -m weft.demo.evaluate [--num-prompts 200] [--json]

Knows transformers' and PEFT's greedy generation. Adapters are measured one at a time.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import Module

from weft.demo import ADAPTERS_DIR, BASE_DIR
from weft.demo.card import Score, update_card
from weft.demo.models import load_adapter, load_base
from weft.demo.skills import SKILLS
from weft.demo.tokens import END_ID, END_OF_TEXT_ID, PAD_ID, Message, encode_prompt

console = Console(stderr=True)

MAX_NEW_TOKENS = 96
PROMPTS_PER_BATCH = 50


def heldout_prompts(name: str, num_prompts: int, seed: int = 7) -> list[str]:
    """Distinct held-out prompts of a skill."""
    rng = random.Random(seed)
    prompts: dict[str, None] = {}
    while len(prompts) < num_prompts:
        prompts[SKILLS[name].heldout_example(rng).prompt] = None
    return list(prompts)


@torch.no_grad()
def generate(model: Module, prompts: Sequence[str]) -> list[str]:
    """Greedy answers to plain messages, left-padded into one batch."""
    rows = [encode_prompt([Message("user", prompt)]) for prompt in prompts]
    width = max(map(len, rows))
    output_BT: Tensor = model.generate(  # type: ignore[operator]
        input_ids=torch.tensor([[PAD_ID] * (width - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        eos_token_id=[END_ID, END_OF_TEXT_ID],
        pad_token_id=PAD_ID,
    )
    return [_text(row[width:].tolist()) for row in output_BT]


def _text(token_ids: list[int]) -> str:
    return bytes(i for i in token_ids if i < 256).decode(errors="replace")


def accuracy(model: Module, name: str, prompts: Sequence[str]) -> float:
    """The share of prompts that the model answers with the skill."""
    by_length = sorted(prompts, key=len)
    starts = range(0, len(by_length), PROMPTS_PER_BATCH)
    groups = [by_length[start : start + PROMPTS_PER_BATCH] for start in starts]
    right = 0
    for group in track(groups, description=name, console=console, transient=True):
        answers = generate(model, group)
        right += sum(map(SKILLS[name].is_correct, group, answers))
    return right / len(prompts)


def measure(base_folder: Path, adapters: Path, num_prompts: int) -> dict[str, Score]:
    """Both accuracies of each adapter found, on the same prompts."""
    base = load_base(base_folder)
    scores: dict[str, Score] = {}
    for name in SKILLS:
        if (adapters / name).is_dir():
            prompts = heldout_prompts(name, num_prompts)
            scores[name] = Score(
                base=accuracy(base, name, prompts),
                adapter=accuracy(load_adapter(name, base_folder, adapters), name, prompts),
            )
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo base and its adapters.")
    parser.add_argument("--num-prompts", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="write the scores to standard output")
    args = parser.parse_args()
    scores = measure(BASE_DIR, ADAPTERS_DIR, args.num_prompts)
    training = json.loads((BASE_DIR / "training.json").read_text())
    update_card(BASE_DIR / "README.md", scores, args.num_prompts, training)
    if args.json:
        Console(soft_wrap=True).print_json(json.dumps({k: vars(v) for k, v in scores.items()}))
        return
    table = Table("adapter", "base", "base + adapter")
    for name, score in scores.items():
        table.add_row(name, f"{score.base:.3f}", f"{score.adapter:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
