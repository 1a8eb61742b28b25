"""What an adapter does at one site: low-rank factors, a row scale, a bias.

y = m (W x + scale * B (A x)) + base_bias + bias        A [rank, in], B [out, rank]
"""

from __future__ import annotations

from dataclasses import dataclass

from weft_adapters.tensors import Float32


@dataclass(frozen=True, slots=True)
class SiteWeights:
    """a float32 `[rank, in]`, b float32 `[rank, out]` (B transposed), scale on their product.

    row_scale: float32 `[out]`, on the base and the factors together (m, DoRA), None for 1.
    bias: float32 `[out]`, added to the base's own after the row scale, None for 0. A site that has
    only these two has rank 0.
    """

    a: Float32
    b: Float32
    scale: float
    row_scale: Float32 | None = None
    bias: Float32 | None = None

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def num_bytes(self) -> int:
        vectors = (self.row_scale, self.bias)
        return self.a.nbytes + self.b.nbytes + sum(v.nbytes for v in vectors if v is not None)
