"""Requests over paged keys and values with blocks in any order, and their twin."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from weft_kernels import reference_attention
from weft_kernels.attention import create_attention_buckets, paged_attention

Span = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """Requests of given (chunk, context) lengths, with blocks dealt in random order.

    Blocks that no request has, but for the null block 0, hold NaN.
    """

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    spans: list[Span]
    tables: list[list[int]]
    block_size: int

    def twin(self, window: int | None = None) -> torch.Tensor:
        return reference_attention.paged_attention(
            self.q, self.k_cache, self.v_cache, self.spans, self.tables, 0.3, window
        )

    def run(self, device: torch.device, *windows: int | None) -> torch.Tensor:
        """With the last window; the buckets are for all of them."""
        windows = windows or (None,)
        buckets = create_attention_buckets(
            self.spans, self.tables, self.block_size, device, windows
        )
        q, k, v = (t.to(device) for t in (self.q, self.k_cache, self.v_cache))
        return paged_attention(q, k, v, buckets, 0.3, windows[-1]).cpu()


def create_case(
    lengths: list[tuple[int, int]],
    *,
    num_kv_heads: int = 2,
    groups: int = 3,
    head_dim: int = 8,
    block_size: int = 4,
) -> Case:
    generator = torch.Generator().manual_seed(2)
    needed = [-(-total // block_size) for _, total in lengths]
    num_blocks = sum(needed) + 4
    deal = list(range(1, num_blocks))
    random.Random(0).shuffle(deal)
    spans, tables, row = [], [], 0
    for (num_new, num_total), count in zip(lengths, needed, strict=True):
        spans.append((row, num_new, num_total))
        tables.append([deal.pop() for _ in range(count)])
        row += num_new
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    caches = torch.randn(2, *shape, generator=generator)
    caches[:, 0] = 0
    caches[:, deal] = float("nan")
    return Case(
        q=torch.randn(row, num_kv_heads * groups, head_dim, generator=generator),
        k_cache=caches[0],
        v_cache=caches[1],
        spans=spans,
        tables=tables,
        block_size=block_size,
    )


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
