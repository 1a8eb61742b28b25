"""Which rows of a step have an embedding, a head or tokens of their adapter's own.

Rows of one adapter lie side by side in a batch, so each adapter's part is a slice of it. A batch
without such an adapter has no `VocabularyBatch`, and pays nothing.

Legend: T rows, H hidden, N rows of logits, V tokens of the base, L of the largest vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from weft_adapters.device_vocabulary import DeviceVocabulary
from weft_adapters.pool import PooledAdapter
from weft_kernels.linear import LinearWeight


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `[start, stop)` of one adapter."""

    start: int
    stop: int
    vocabulary: DeviceVocabulary


@dataclass(frozen=True, slots=True)
class VocabularyBatch:
    """Segments of the step's rows, and of its rows of logits; `sizes`: how many tokens each row of
    logits can choose from."""

    rows: tuple[Segment, ...]
    logits: tuple[Segment, ...]
    sizes: tuple[int, ...]

    def embed(self, embed_VH: Tensor, tokens_T: Tensor) -> Tensor:
        """`[T, H]`, each row from its own adapter's embedding."""
        tokens_T = tokens_T.long()
        x_TH = embed_VH.index_select(0, tokens_T.clamp(max=embed_VH.shape[0] - 1))
        for part in self.rows:
            if part.vocabulary.embedding is not None:
                rows = slice(part.start, part.stop)
                part.vocabulary.embedding.embed_(x_TH[rows], tokens_T[rows])
        return x_TH

    def head(self, head: LinearWeight, x_NH: Tensor) -> Tensor:
        """float32 logits `[N, L]`; -inf for what is no token of a row's vocabulary."""
        num_rows = x_NH.shape[0]
        largest = max((head.num_out, *self.sizes))
        whole = sum(s.stop - s.start for s in self.logits if s.vocabulary.has_whole_head)
        if whole == num_rows:
            logits_NL = x_NH.new_full((num_rows, largest), -torch.inf, dtype=torch.float32)
        else:
            logits_NL = head.apply(x_NH).float()
            if largest > head.num_out:
                beyond = largest - head.num_out
                logits_NL = torch.nn.functional.pad(logits_NL, (0, beyond), value=-torch.inf)
        for part in self.logits:
            rows = slice(part.start, part.stop)
            if part.vocabulary.head is not None:
                part.vocabulary.head.add_logits_(logits_NL[rows], x_NH[rows])
            if part.vocabulary.num_tokens < largest:
                logits_NL[rows, part.vocabulary.num_tokens :] = -torch.inf
        return logits_NL


def create_vocabulary_batch(
    row_digests: Sequence[str | None],
    logit_rows: Sequence[int],
    adapters: Mapping[str, PooledAdapter],
    vocab_size: int,
) -> VocabularyBatch | None:
    """None where no row's adapter has a part of its own."""
    own = {digest: v for digest, a in adapters.items() if (v := a.vocabulary) is not None}
    if not own or own.keys().isdisjoint(row_digests):
        return None
    logit_digests = [row_digests[row] for row in logit_rows]
    return VocabularyBatch(
        rows=tuple(_segments(row_digests, own)),
        logits=tuple(_segments(logit_digests, own)),
        sizes=tuple(own[d].num_tokens if d in own else vocab_size for d in logit_digests),
    )


def _segments(
    digests: Sequence[str | None], own: Mapping[str, DeviceVocabulary]
) -> Iterator[Segment]:
    start = 0
    for digest, run in groupby(digests):
        stop = start + sum(1 for _ in run)
        if digest is not None and digest in own:
            yield Segment(start, stop, own[digest])
        start = stop
