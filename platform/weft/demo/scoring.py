"""Exact-match accuracy on held-out prompts while training, in one forward pass per skill.

Knows a causal model and the chat encoding. If every answer token is the arg-max after the tokens
before it, greedy decoding gives exactly that answer, and conversely: so teacher forcing measures
greedy exact match without generating. `evaluate.py` generates for real.
"""

import random

import torch
from torch import Tensor
from torch.nn import Module, functional

from weft.demo.skills import SKILLS
from weft.demo.tokens import PAD_ID, Document, Message, encode_chat


def heldout_chats(name: str, num_prompts: int, seed: int, *, named: bool) -> list[Document]:
    """Held-out conversations of a skill, with or without the system message that names it."""
    rng = random.Random(seed)
    system = [Message("system", name)] if named else []
    examples = [SKILLS[name].heldout_example(rng) for _ in range(num_prompts)]
    return [
        encode_chat([*system, Message("user", e.prompt), Message("assistant", e.answer)])
        for e in examples
    ]


@torch.no_grad()
def exact_match(model: Module, documents: list[Document]) -> float:
    """The share of documents whose every weighted token is the model's first choice."""
    was_training = model.training
    model.eval()
    length = max(len(doc.token_ids) for doc in documents)
    ids_BT = _padded([doc.token_ids for doc in documents], length, PAD_ID)
    counts_BT = _padded([[int(w > 0) for w in doc.weights] for doc in documents], length, 0)
    logits_BTV: Tensor = model(input_ids=ids_BT).logits  # right padding: causality hides it
    right_BT = (logits_BTV[:, :-1].argmax(dim=-1) == ids_BT[:, 1:]) | (counts_BT[:, 1:] == 0)
    model.train(was_training)
    return right_BT.all(dim=1).float().mean().item()


def _padded(rows: list[list[int]], length: int, fill: int) -> Tensor:
    tensors = [functional.pad(torch.tensor(r), (0, length - len(r)), value=fill) for r in rows]
    return torch.stack(tensors)
