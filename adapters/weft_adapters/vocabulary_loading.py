"""Reads what `vocabulary` has resolved; rows that are the base's are left out.

Legend: V tokens, H hidden, N rows that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft_adapters.base_weights import BaseWeights
from weft_adapters.site_weights import TokenRows
from weft_adapters.sites import EMBEDDING, BaseSpec, Site
from weft_adapters.tensors import Float32, TensorFile
from weft_adapters.vocabulary import Factors, TokenMatrix, VocabularyPlan

_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedMatrix:
    """a float32 `[rank, in]`, b float32 `[rank, out]`, as the base's embedding (V to H) or head (H
    to V) has them; the rows in `rows` contain their product."""

    site: Site
    a: Float32
    b: Float32
    scale: float
    rows: TokenRows | None


def load_vocabulary(
    plan: VocabularyPlan, file: TensorFile, base: BaseSpec, base_weights: BaseWeights | None = None
) -> list[LoadedMatrix]:
    """Read embedding and head; rows that are the base's are left out where `base_weights` is given.

    Two modules with one matrix and the same factors share their rows."""
    loaded = []
    known: dict[tuple[str | None, Factors | None], TokenRows | None] = {}
    for matrix in plan.matrices:
        site = base.embedding if matrix.projection == EMBEDDING else base.head
        num_in, num_out = base.shape(site)
        a, b = np.zeros((0, num_in), np.float32), np.zeros((0, num_out), np.float32)
        scale = 0.0
        if matrix.factors is not None:
            a, b = matrix.factors.read(file, matrix.projection)
            scale = matrix.factors.scale
        by_token, by_hidden = (a, b) if site == base.embedding else (b, a)
        key = (matrix.matrix, matrix.factors)
        if key not in known:
            known[key] = _read_rows(plan, matrix, file, base, site, base_weights)
            if (rows := known[key]) is not None and matrix.factors is not None:
                _add_product(rows, by_token, by_hidden, scale)
        rows = known[key]
        if rows is not None and len(rows.token_ids) == plan.num_tokens:
            by_token, by_hidden = by_token[:0], by_hidden[:0]  # every row has it already
        by_token = _fit(by_token, base.vocab_size)
        a, b = (by_token, by_hidden) if site == base.embedding else (by_hidden, by_token)
        loaded.append(LoadedMatrix(site, a, b, scale, rows))
    return loaded


def _read_rows(
    plan: VocabularyPlan,
    matrix: TokenMatrix,
    file: TensorFile,
    base: BaseSpec,
    site: Site,
    base_weights: BaseWeights | None,
) -> TokenRows | None:
    """The rows of the matrix that are not the base's."""
    if matrix.matrix is None:
        return None
    hidden = base.hidden_size
    values = np.empty((plan.num_tokens, hidden), np.float32)
    kept: list[NDArray[np.int64]] = []
    num_kept, step = 0, max(1, _CHUNK_ELEMENTS // hidden)
    for first in range(0, plan.num_tokens, step):
        stop = min(first + step, plan.num_tokens)
        part = file.read_rows(matrix.matrix, first, stop)
        ids = np.arange(first, stop)
        num_old = max(0, min(stop, base.vocab_size) - first)
        if base_weights is not None and num_old:
            old = base_weights.rows(site, first, first + num_old)
            is_own = np.ones(len(ids), bool)
            is_own[:num_old] = (base_weights.served(part[:num_old]) != old).any(axis=1)
            part, ids = part[is_own], ids[is_own]
        values[num_kept : num_kept + len(ids)] = part
        num_kept += len(ids)
        kept.append(ids)
    if num_kept == 0 and plan.num_tokens == base.vocab_size:
        return None
    is_whole = num_kept == plan.num_tokens
    own = values if is_whole else values[:num_kept].copy()
    return TokenRows(plan.num_tokens, np.concatenate(kept), own)


def _add_product(rows: TokenRows, by_token: Float32, by_hidden: Float32, scale: float) -> None:
    """`values += scale * by_token^T by_hidden`, each row once. Not by BLAS, whose threads would
    compete with the engine's."""
    step = max(1, _CHUNK_ELEMENTS // rows.values.shape[1])
    for first in range(0, len(rows.token_ids), step):
        part = slice(first, first + step)
        own = by_token[:, rows.token_ids[part]]
        rows.values[part] += np.float32(scale) * np.einsum("rn,rh->nh", own, by_hidden)


def _fit(by_token: Float32, vocab_size: int) -> Float32:
    """A column for each of the base's tokens: those of added ones are in their rows."""
    num_missing = vocab_size - by_token.shape[1]
    if num_missing <= 0:
        return np.ascontiguousarray(by_token[:, :vocab_size])
    return np.pad(by_token, ((0, 0), (0, num_missing)))
