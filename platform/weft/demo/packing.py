"""Packs documents into fixed windows with a block-diagonal causal mask.

Knows tensors and documents; knows no model. Documents in one window do not see each other and
each counts its positions from zero, so a packed conversation equals a served one.

Shapes: B windows, T tokens of a window.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.demo.corpus import text_document
from weft.demo.tokens import END_OF_TEXT_ID, Document

WINDOW = 256


@dataclass(frozen=True)
class Batch:
    """What one training step reads."""

    token_ids_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor

    @property
    def num_tokens(self) -> int:
        return self.token_ids_BT.numel()


def pack_window(
    rng: random.Random, documents: Iterator[Document], text_share: float
) -> list[Document]:
    """Documents until one does not fit; the rest of the window is library text.

    With no `text_share` the rest is filler without weight, so that only the documents are learnt.
    """
    if rng.random() < text_share:
        return [text_document(rng, WINDOW)]
    packed: list[Document] = []
    room = WINDOW
    for document in documents:
        if len(document.token_ids) > room:
            break
        packed.append(document)
        room -= len(document.token_ids)
    with_text = text_share > 0 and room > 1
    return [*packed, text_document(rng, room) if with_text else _filler(room)]


def _filler(num_tokens: int) -> Document:
    return Document([END_OF_TEXT_ID] * num_tokens, [0.0] * num_tokens)


def create_batch(windows: list[list[Document]]) -> Batch:
    """Tensors of `windows`; a document's last token predicts nothing."""
    ids, positions, owners, targets, weights = [], [], [], [], []
    for window in windows:
        ids.append([i for doc in window for i in doc.token_ids])
        positions.append([i for doc in window for i in range(len(doc.token_ids))])
        owners.append([n for n, doc in enumerate(window) for _ in doc.token_ids])
        targets.append([i for doc in window for i in [*doc.token_ids[1:], 0][: len(doc.weights)]])
        weights.append([w for doc in window for w in [*doc.weights[1:], 0.0][: len(doc.weights)]])
    owners_BT = torch.tensor(owners)
    same_BTT = owners_BT[:, :, None] == owners_BT[:, None, :]
    return Batch(
        token_ids_BT=torch.tensor(ids),
        positions_BT=torch.tensor(positions),
        mask_B1TT=same_BTT.tril()[:, None],
        targets_BT=torch.tensor(targets),
        weights_BT=torch.tensor(weights),
    )


def batches(
    rng: random.Random, documents: Iterator[Document], num_windows: int, text_share: float
) -> Iterator[Batch]:
    """An endless stream of batches."""
    while True:
        yield create_batch([pack_window(rng, documents, text_share) for _ in range(num_windows)])
