"""Batches for the tests of attention, with NaN wherever a kernel has no business."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

from weft_kernels import reference_attention
from weft_kernels.attention import Int8Cache
from weft_kernels.cuda.attention import paged_attention
from weft_kernels.cuda.attention_plan import (
    AttentionPlanner,
    Span,
    create_attention_metadata,
)
from weft_kernels.cuda.attention_tiles import Tiling
from weft_kernels.cuda.kv_write import Cache, Fp8Cache

BLOCK_SIZE = 16
SCALE = 0.3
# so small that short contexts are split, in several loops each
DECODE = Tiling(16, 16, split_len=32, num_programs=64, num_warps=4, num_stages=2)
PREFILL = Tiling(32, 16, split_len=32, num_programs=64, num_warps=4, num_stages=2)

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """Requests with blocks dealt in random order.

    Blocks that no request has, block 0 among them, and places beyond a context hold NaN.
    """

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    spans: list[Span]
    tables: list[list[int]]
    planner: AttentionPlanner

    def twin(self, window: int | None = None) -> torch.Tensor:
        return reference_attention.paged_attention(
            self.q, self.k_cache, self.v_cache, self.spans, self.tables, SCALE, window
        )

    def run(
        self,
        device: torch.device,
        window: int | None = None,
        *,
        caches: tuple[Cache, Cache] | None = None,
        num_rows: int | None = None,
    ) -> torch.Tensor:
        metadata = create_attention_metadata(
            replace(self.planner, windows=(window,)), self.spans, self.tables, device, num_rows
        )
        k, v = caches or (self.k_cache.to(device), self.v_cache.to(device))
        return paged_attention(self.q.to(device), k, v, metadata, SCALE, window).cpu()


def create_case(
    lengths: list[tuple[int, int]],
    *,
    num_kv_heads: int = 1,
    groups: int = 4,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    num_padding: int = 0,
    decode: Tiling = DECODE,
    prefill: Tiling = PREFILL,
) -> Case:
    """lengths: (chunk, context with the chunk) of each request."""
    generator = torch.Generator().manual_seed(3)
    needed = [-(-total // BLOCK_SIZE) for _, total in lengths]
    num_blocks = sum(needed) + 3
    deal = list(range(1, num_blocks))
    random.Random(len(lengths)).shuffle(deal)
    caches = torch.full((2, num_blocks, BLOCK_SIZE, num_kv_heads, head_dim), torch.nan)
    spans, tables, row = [], [], 0
    for (num_new, num_total), count in zip(lengths, needed, strict=True):
        spans.append((row, num_new, num_total))
        tables.append([deal.pop() for _ in range(count)])
        row += num_new
        values = torch.randn(2, num_total, num_kv_heads, head_dim, generator=generator)
        for j in range(num_total):
            caches[:, tables[-1][j // BLOCK_SIZE], j % BLOCK_SIZE] = values[:, j]
    shape = (row + num_padding, num_kv_heads * groups, head_dim)
    q = torch.randn(shape, generator=generator)
    q[row:] = torch.nan
    caches = caches.to(dtype)
    planner = AttentionPlanner(num_kv_heads, groups, BLOCK_SIZE, decode, prefill)
    return Case(q.to(dtype), caches[0], caches[1], spans, tables, planner)


def quantized(
    cache: torch.Tensor, kind: type[Int8Cache] | type[Fp8Cache], device: torch.device
) -> Int8Cache | Fp8Cache:
    """As `write_kv` rounds; NaN becomes bytes that count for much under a scale of NaN."""
    most = 127 if kind is Int8Cache else 448
    wide = cache.float()
    scale = wide.abs().amax(-1, keepdim=True) / most
    values = (wide / scale).nan_to_num(most)
    data = values.round().to(torch.int8) if kind is Int8Cache else values.to(torch.float8_e4m3fn)
    return kind(data.to(device), scale.to(device))


def dequantized(case: Case, *caches: Int8Cache | Fp8Cache) -> Case:
    k, v = (cache.data.cpu().double() * cache.scale.cpu().double() for cache in caches)
    return replace(case, k_cache=k, v_cache=v)


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    tolerance = TOLERANCES[got.dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
