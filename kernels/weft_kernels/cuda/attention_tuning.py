"""Random steps for attention and KV writes, and what the tuning command may try on them.

Decode is tuned at 64 requests of 1,024 tokens, prefill at one prompt of 2,048, both with the query
heads of a model of 32: what a server does most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from weft_kernels.attention import Int8Cache
from weft_kernels.cuda.attention import paged_attention
from weft_kernels.cuda.attention_plan import (
    AttentionMetadata,
    AttentionPlanner,
    Span,
    create_attention_metadata,
    create_attention_planner,
    get_tiling,
    tiling_of,
)
from weft_kernels.cuda.attention_tiles import Tiling
from weft_kernels.cuda.configs import Config, Launch, Shape, TuningSpace, listed_configs
from weft_kernels.cuda.kv_write import Cache

BLOCK_SIZE = 16
NUM_QUERY_HEADS = 32


@dataclass(frozen=True, slots=True)
class RandomStep:
    """Queries and caches of random numbers; every request has blocks of its own, dealt at random.

    q_TND `[T, N G, D]`; caches `[num_blocks, 16, N, D]`.
    """

    q_TND: Tensor
    k_cache: Cache
    v_cache: Cache
    spans: Sequence[Span]
    tables: Sequence[Sequence[int]]

    def metadata(self, planner: AttentionPlanner) -> AttentionMetadata:
        return create_attention_metadata(planner, self.spans, self.tables, self.q_TND.device)


def create_random_cache(
    num_blocks: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Cache:
    """int8 with scales, or a float dtype."""
    shape = (num_blocks, BLOCK_SIZE, num_kv_heads, head_dim)
    if dtype != torch.int8:
        return torch.randn(shape, dtype=dtype, device=device)
    data = torch.randint(-127, 128, shape, dtype=dtype, device=device)
    # as of values with a standard deviation of about one
    return Int8Cache(data, torch.full((*shape[:3], 1), 0.016, device=device))


def create_random_step(
    lengths: Sequence[tuple[int, int]],
    num_kv_heads: int,
    groups: int,
    head_dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> RandomStep:
    """lengths: (chunk, context with the chunk) of each request."""
    counts = [-(-total // BLOCK_SIZE) for _, total in lengths]
    deal = torch.randperm(sum(counts)).tolist()
    spans, tables, row = [], [], 0
    for (num_new, total), count in zip(lengths, counts, strict=True):
        spans.append((row, num_new, total))
        tables.append([deal.pop() for _ in range(count)])
        row += num_new
    k_cache, v_cache = (
        create_random_cache(sum(counts), num_kv_heads, head_dim, kv_dtype, device) for _ in range(2)
    )
    q_TND = torch.randn(row, num_kv_heads * groups, head_dim, dtype=dtype, device=device)
    return RandomStep(q_TND, k_cache, v_cache, spans, tables)


def _create_launch(
    form: str, lengths: Sequence[tuple[int, int]]
) -> Callable[[Shape, torch.device], Callable[[Config], Launch]]:
    """Random inputs of a form; its configurations change its own tiling alone."""

    def create(shape: Shape, device: torch.device) -> Callable[[Config], Launch]:
        groups, head_dim = shape["groups"], shape["head_dim"]
        kv_dtype = torch.int8 if shape["kv_bytes"] == 1 else torch.bfloat16
        num_kv_heads = NUM_QUERY_HEADS // groups
        step = create_random_step(
            lengths, num_kv_heads, groups, head_dim, torch.bfloat16, kv_dtype, device
        )
        planner = create_attention_planner(num_kv_heads, groups, head_dim, kv_dtype)

        def launch_with(config: Config) -> Launch:
            tiling = tiling_of(config, groups)
            planned = (
                replace(planner, decode=tiling)
                if form == "decode"
                else replace(planner, prefill=tiling)
            )
            metadata = step.metadata(planned)
            return lambda: paged_attention(
                step.q_TND, step.k_cache, step.v_cache, metadata, head_dim**-0.5
            )

        return launch_with

    return create


def _config(tiling: Tiling) -> Config:
    return {
        "BLOCK_M": tiling.block_m,
        "BLOCK_L": tiling.block_l,
        "SPLIT_LEN": tiling.split_len,
        "NUM_PROGRAMS": tiling.num_programs,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }


def _candidates(
    form: str, block_l: Sequence[int], num_programs: Sequence[int], num_warps: Sequence[int],
    num_stages: Sequence[int],
) -> Callable[[Shape], Sequence[Config]]:  # fmt: skip
    """The listed configuration and all combinations beside it."""

    def candidates(shape: Shape) -> Sequence[Config]:
        listed = get_tiling(form, **shape)
        return [
            _config(listed),
            *(
                _config(replace(listed, block_l=keys, num_programs=n, num_warps=w, num_stages=s))
                for keys, n, w, s in product(block_l, num_programs, num_warps, num_stages)
            ),
        ]

    return candidates


TUNING = (
    TuningSpace(
        operator="attention_decode",
        shapes=[shape for shape, _ in listed_configs("attention_decode")],
        candidates=_candidates("decode", (32, 64, 128), (264, 528, 1056), (4, 8), (3, 5)),
        create_launch=_create_launch("decode", [(1, 1024)] * 64),
    ),
    TuningSpace(
        operator="attention_prefill",
        shapes=[shape for shape, _ in listed_configs("attention_prefill")],
        candidates=_candidates("prefill", (32, 64), (132, 264), (4, 8), (2, 3)),
        create_launch=_create_launch("prefill", [(2048, 2048)]),
    ),
)
