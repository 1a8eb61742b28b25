"""An adapter's embedding and head on the device, and what they do to a step's rows.

    embedding    x[t] = E[t] + s A[:, t]^T B      or the adapter's own row, where it has one
    head         l[v] = (W x)[v] + s (B A x)[v]   likewise

Few adapters have a part here, and one that has is a handful of large operations: they run adapter
by adapter, on whatever device the matrices are. Nothing here waits for the device.

Legend: T rows of a step, V tokens of the base, H hidden, R rank, N own rows, L tokens of the
batch's largest vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft_adapters.site_weights import SiteWeights, TokenRows
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.tensors import Float32


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """token_ids int64 `[N]`, ascending; values `[N, H]`. `first`: where they follow each other."""

    token_ids: Tensor
    first: int | None
    values: Tensor


@dataclass(frozen=True, slots=True)
class DeviceMatrix:
    """by_token `[R, V]`, by_hidden `[R, H]`, None without factors; own rows, or None."""

    by_token: Tensor | None
    by_hidden: Tensor | None
    scale: float
    rows: DeviceRows | None

    def embed_(self, x_TH: Tensor, tokens_T: Tensor) -> None:
        """x_TH: the base's rows, of its last token for those beyond it; changed in place.
        tokens_T int64."""
        if self.by_token is not None and self.by_hidden is not None:
            h_RT = self.by_token.index_select(1, tokens_T.clamp(max=self.by_token.shape[1] - 1))
            x_TH.addmm_(h_RT.t(), self.by_hidden, alpha=self.scale)
        if self.rows is not None and len(self.rows.values):
            ids, values = self.rows.token_ids, self.rows.values
            place_T = torch.searchsorted(ids, tokens_T).clamp_(max=len(ids) - 1)
            is_own = ids.index_select(0, place_T) == tokens_T
            torch.where(is_own[:, None], values.index_select(0, place_T), x_TH, out=x_TH)

    def add_logits_(self, logits_TL: Tensor, x_TH: Tensor) -> None:
        """logits_TL float32: the base's in its first V columns; changed in place."""
        if self.by_token is not None and self.by_hidden is not None:
            base_TV = logits_TL[:, : self.by_token.shape[1]]
            h_TR = (x_TH @ self.by_hidden.t()).mul_(self.scale)
            if x_TH.dtype is torch.float32:
                base_TV.addmm_(h_TR, self.by_token)
            else:
                base_TV += h_TR @ self.by_token
        if self.rows is not None and len(self.rows.values):
            own_TN = (x_TH @ self.rows.values.t()).float()
            if self.rows.first is None:
                logits_TL.index_copy_(1, self.rows.token_ids, own_TN)
            else:
                logits_TL.narrow(1, self.rows.first, own_TN.shape[1]).copy_(own_TN)


@dataclass(frozen=True, slots=True)
class DeviceVocabulary:
    """`num_tokens`: how many tokens the adapter's requests have."""

    num_tokens: int
    embedding: DeviceMatrix | None
    head: DeviceMatrix | None

    @property
    def has_whole_head(self) -> bool:
        """No logit is the base's."""
        rows = None if self.head is None else self.head.rows
        return rows is not None and len(rows.values) == self.num_tokens


def create_device_vocabulary(
    base: BaseSpec,
    weights: Mapping[Site, SiteWeights],
    matrices: Sequence[Float32],
    views: Iterable[Tensor],
) -> DeviceVocabulary | None:
    """`views[i]` holds `matrices[i]` on the device; None for an adapter without such a part."""
    placed = dict(zip(map(id, matrices), views, strict=True))
    embedding, head = weights.get(base.embedding), weights.get(base.head)
    if embedding is None and head is None:
        return None
    rows = next((w.rows for w in (embedding, head) if w is not None and w.rows is not None), None)
    return DeviceVocabulary(
        num_tokens=base.vocab_size if rows is None else rows.num_tokens,
        embedding=_create_matrix(embedding, placed, is_head=False),
        head=_create_matrix(head, placed, is_head=True),
    )


def _create_matrix(
    weights: SiteWeights | None, placed: Mapping[int, Tensor], *, is_head: bool
) -> DeviceMatrix | None:
    if weights is None:
        return None
    a, b = placed.get(id(weights.a)), placed.get(id(weights.b))
    by_token, by_hidden = (b, a) if is_head else (a, b)
    return DeviceMatrix(by_token, by_hidden, weights.scale, _create_rows(weights.rows, placed))


def _create_rows(rows: TokenRows | None, placed: Mapping[int, Tensor]) -> DeviceRows | None:
    values = None if rows is None else placed.get(id(rows.values))
    if rows is None or values is None:
        return None
    ids = rows.token_ids
    is_run = int(ids[-1]) - int(ids[0]) == len(ids) - 1
    first = int(ids[0]) if is_run else None
    return DeviceRows(torch.from_numpy(ids).to(values.device), first, values)
