"""What an adapter takes on each tier, known before it is loaded: its arrays by shape alone.

Exact but for embedding and head: of a whole matrix only the rows that are not the base's are kept,
and which those are is seen at the load. They count in full here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from weft_adapters.format import AdapterPlan
from weft_adapters.header import Header
from weft_adapters.placement import Placer
from weft_adapters.site_weights import SiteWeights, TokenRows, num_bytes
from weft_adapters.sites import EMBEDDING, BaseSpec, Site
from weft_adapters.tensors import Float32
from weft_adapters.vocabulary import Factors, VocabularyPlan


def tier_bytes(
    plan: AdapterPlan, header: Header, base: BaseSpec, value_bytes: int
) -> dict[str, int]:
    """By tier; `value_bytes`: of one value on the device."""
    weights = _shapes(plan, base)
    placer = Placer(base, _LARGE)
    return {
        "store": header.num_bytes,
        "disk": header.num_bytes,
        "host": num_bytes(weights),
        "device": placer.num_units(weights) * placer.unit_elements * value_bytes,
    }


_LARGE = 2**40  # elements of an arena that nothing is taken from


def _array(*shape: int) -> Float32:
    """Of that shape, and without memory of its own."""
    return np.broadcast_to(np.float32(0), shape)


def _shapes(plan: AdapterPlan, base: BaseSpec) -> dict[Site, SiteWeights]:
    """What `load` would give, as far as sizes go."""
    vectors = plan.vectors
    weights = {}
    for site, rank in plan.sites(base).items():
        if site.is_vocabulary:
            continue
        num_in, num_out = base.shape(site)
        weights[site] = SiteWeights(
            _array(rank, num_in),
            _array(rank, num_out),
            1.0,
            _array(num_out) if site in vectors.magnitudes else None,
            _array(num_out) if site in vectors.biases else None,
        )
    if plan.vocabulary is not None:
        weights |= _vocabulary_shapes(plan.vocabulary, base)
    return weights


def _vocabulary_shapes(plan: VocabularyPlan, base: BaseSpec) -> Mapping[Site, SiteWeights]:
    weights = {}
    known: dict[tuple[str | None, Factors | None], TokenRows] = {}
    for matrix in plan.matrices:
        site = base.embedding if matrix.projection == EMBEDDING else base.head
        num_in, num_out = base.shape(site)
        rank = 0 if matrix.factors is None else matrix.factors.rank
        rows = None
        if matrix.matrix is not None:
            rank = 0  # every row has the product already
            key = (matrix.matrix, matrix.factors)
            ids = np.broadcast_to(np.int64(0), (plan.num_tokens,))
            values = _array(plan.num_tokens, base.hidden_size)
            rows = known.setdefault(key, TokenRows(plan.num_tokens, ids, values))
        weights[site] = SiteWeights(_array(rank, num_in), _array(rank, num_out), 1.0, rows=rows)
    return weights
