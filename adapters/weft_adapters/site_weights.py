"""What an adapter does at one site: low-rank factors, a row scale, a bias, rows of its own.

y = m (W x + scale * B (A x)) + base_bias + bias        A [rank, in], B [out, rank]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weft_adapters.sites import Site
from weft_adapters.tensors import Float32


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of an embedding or a head that take the base's place.

    num_tokens: of the adapter's vocabulary; every token beyond the base's has a row. token_ids
    int64 `[N]`, ascending; values float32 `[N, H]`.
    """

    num_tokens: int
    token_ids: NDArray[np.int64]
    values: Float32

    @property
    def num_bytes(self) -> int:
        return self.token_ids.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class SiteWeights:
    """a float32 `[rank, in]`, b float32 `[rank, out]` (B transposed), scale on their product.

    row_scale: float32 `[out]`, on the base and the factors together (m, DoRA), None for 1.
    bias: float32 `[out]`, added to the base's own after the row scale, None for 0. A site that has
    only these two has rank 0.

    rows: of the embedding or the head alone; the factors' part is in them already.
    """

    a: Float32
    b: Float32
    scale: float
    row_scale: Float32 | None = None
    bias: Float32 | None = None
    rows: TokenRows | None = None

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def num_bytes(self) -> int:
        """Without `rows`, which two sites may share."""
        vectors = (self.row_scale, self.bias)
        return self.a.nbytes + self.b.nbytes + sum(v.nbytes for v in vectors if v is not None)


def num_bytes(weights: Mapping[Site, SiteWeights]) -> int:
    """Of a whole adapter in host memory."""
    rows = {id(w.rows): w.rows.num_bytes for w in weights.values() if w.rows is not None}
    return sum(w.num_bytes for w in weights.values()) + sum(rows.values())


def matrices_of(weights: Mapping[Site, SiteWeights]) -> list[Float32]:
    """The matrices of embedding and head that take room on the device, each once."""
    found: dict[int, Float32] = {}
    for site, own in weights.items():
        if site.is_vocabulary:
            rows = [] if own.rows is None else [own.rows.values]
            found |= {id(array): array for array in (own.a, own.b, *rows) if array.size}
    return list(found.values())
