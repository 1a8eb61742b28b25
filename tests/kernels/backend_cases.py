"""A step of requests over paged keys and values with its twin."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from weft_kernels import reference_attention
from weft_kernels.backend import Backend

CPU = torch.device("cpu")


def assert_near(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class Step:
    """Requests of given (chunk, context) lengths; blocks that none of them has hold NaN."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    spans: list[tuple[int, int, int]]
    tables: list[list[int]]
    block_size: int

    def run(self, backend: Backend, window: int | None = None) -> torch.Tensor:
        attention = backend.create_attention(
            self.spans, self.tables, self.block_size, CPU, (None, window)
        )
        return attention.attend(self.q, self.k_cache, self.v_cache, 0.3, window)

    def twin(self, window: int | None = None) -> torch.Tensor:
        return reference_attention.paged_attention(
            self.q, self.k_cache, self.v_cache, self.spans, self.tables, 0.3, window
        )


def create_step(
    lengths: list[tuple[int, int]], *, num_kv_heads: int = 2, groups: int = 3, head_dim: int = 8,
    block_size: int = 4,
) -> Step:  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    needed = [-(-total // block_size) for _, total in lengths]
    deal = list(range(1, sum(needed) + 4))
    random.Random(0).shuffle(deal)
    spans, tables, row = [], [], 0
    for (num_new, num_total), count in zip(lengths, needed, strict=True):
        spans.append((row, num_new, num_total))
        tables.append([deal.pop() for _ in range(count)])
        row += num_new
    shape = (sum(needed) + 4, block_size, num_kv_heads, head_dim)
    caches = torch.randn(2, *shape, generator=generator)
    caches[:, 0], caches[:, deal] = 0, torch.nan
    for (_, _, total), blocks in zip(spans, tables, strict=True):
        # nor may what a block holds behind the last token matter, as long as it is finite
        caches[:, blocks[-1], (total - 1) % block_size + 1 :] = 1e4
    q = torch.randn(row, num_kv_heads * groups, head_dim, generator=generator)
    return Step(q, caches[0], caches[1], spans, tables, block_size)
