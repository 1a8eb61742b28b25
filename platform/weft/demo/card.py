"""Keeps the measured blocks of the demo's model card. Knows Markdown and figures, no models."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Score:
    """Exact match on the same held-out prompts."""

    base: float
    adapter: float


def replace_block(text: str, name: str, body: str) -> str:
    """Puts `body` between `<!-- name:start -->` and `<!-- name:end -->`."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    if start not in text or end not in text:
        raise ValueError(f"the card has no block {name!r}")
    head, rest = text.split(start, 1)
    return f"{head}{start}\n{body}\n{end}{rest.split(end, 1)[1]}"


def accuracy_table(scores: Mapping[str, Score], num_prompts: int) -> str:
    """The table that the tests read."""
    rows = [f"| `{name}` | {s.base:.3f} | {s.adapter:.3f} |" for name, s in scores.items()]
    head = ["| adapter | base, same prompts | base + adapter |", "|---|---|---|"]
    note = f"Greedy exact match on {num_prompts} held-out plain prompts a skill."
    return "\n".join([note, "", *head, *rows])


def read_accuracy(card: str) -> dict[str, Score]:
    """The scores in a card's accuracy table."""
    block = card.split("<!-- accuracy:start -->", 1)[1].split("<!-- accuracy:end -->", 1)[0]
    cells = [line.strip("| ").split("|") for line in block.splitlines() if line.startswith("| `")]
    return {
        name.strip(" `"): Score(base=float(base), adapter=float(adapter))
        for name, base, adapter in cells
    }


def training_table(training: Mapping[str, Any]) -> str:
    """The base's run as its `training.json` tells it."""
    losses, named = training["losses"], training["accuracy"]
    rows = {
        "steps": f"{training['steps']:,}",
        "tokens read": f"{training['tokens']:,}",
        "wall time": f"{training['elapsed_s'] / 60:.1f} minutes, two CPU cores, float32",
        "last language loss": f"{losses['lm']:.3f} nats a weighted token",
        "last load-balancing loss": f"{losses['balance']:.4f} (1 is uniform)",
        "last router z-loss": f"{losses['z']:.3f}",
        "held-out skill accuracy when named": ", ".join(f"{k} {v:.3f}" for k, v in named.items()),
    }
    table = ["| figure | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]
    loads = [
        f"| {layer} | " + " | ".join(f"{load:.1%}" for load in row) + " |"
        for layer, row in enumerate(training["load_LE"])
    ]
    num_experts = len(training["load_LE"][0])
    head = "| layer | " + " | ".join(f"expert {e}" for e in range(num_experts)) + " |"
    rule = "|---" * (num_experts + 1) + "|"
    note = f"Share of assignments per expert at the last step (even is {1 / num_experts:.1%}):"
    return "\n".join([*table, "", note, "", head, rule, *loads])


def update_card(
    path: Path, scores: Mapping[str, Score], num_prompts: int, training: Mapping[str, Any]
) -> None:
    """Writes both measured blocks."""
    text = path.read_text(encoding="utf-8")
    text = replace_block(text, "training", training_table(training))
    text = replace_block(text, "accuracy", accuracy_table(scores, num_prompts))
    path.write_text(text, encoding="utf-8")
