"""Paged attention over keys and values of 8 bits, and the writes to their cache."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tests.kernels.attention_cases import Case, create_case

from weft_kernels import reference_attention
from weft_kernels.attention import (
    Int8Cache,
    create_attention_buckets,
    paged_attention,
    write_kv,
)


def create_int8(cache: torch.Tensor, device: torch.device) -> Int8Cache:
    """Every token of a cache `[num_blocks, block_size, N, D]`, written by the operator."""
    data = torch.zeros(cache.shape, dtype=torch.int8, device=device)
    int8 = Int8Cache(data, torch.zeros(*cache.shape[:3], 1, device=device))
    slots = torch.arange(cache.shape[0] * cache.shape[1], device=device)
    write_kv(int8, cache.flatten(0, 1).to(device), slots)
    return int8


def run_int8(case: Case, device: torch.device, window: int | None = None) -> torch.Tensor:
    buckets = create_attention_buckets(case.spans, case.tables, case.block_size, device, (window,))
    k, v = create_int8(case.k_cache, device), create_int8(case.v_cache, device)
    return paged_attention(case.q.to(device), k, v, buckets, 0.3, window).cpu()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("head_dim", [1, 7, 32])
@pytest.mark.parametrize("block_size", [1, 16])
@pytest.mark.parametrize("lengths", [[(1, 1)], [(7, 7)], [(1, 133), (5, 5), (3, 17)]])
def test_int8_attention_is_the_twin_over_rounded_keys_and_values(
    lengths: list[tuple[int, int]], block_size: int, head_dim: int, window: int | None,
    device: torch.device,
) -> None:  # fmt: skip
    case = create_case(lengths, head_dim=head_dim, block_size=block_size)
    rounded = replace(
        case,
        k_cache=reference_attention.rounded_kv(case.k_cache),
        v_cache=reference_attention.rounded_kv(case.v_cache),
    )
    got = run_int8(case, device, window)
    # a value halfway between two steps may go either way in float32
    torch.testing.assert_close(got.double(), rounded.twin(window), rtol=1e-4, atol=1e-3)
    assert (got.double() - case.twin(window)).abs().max() < 0.05


@pytest.mark.parametrize("num_rows", [0, 1, 7, 30])
def test_int8_writes_go_to_their_slots_and_nowhere_else(
    num_rows: int, device: torch.device, generator: torch.Generator
) -> None:
    cache = torch.randn(9, 4, 2, 8, generator=generator)
    int8 = create_int8(cache, device)
    old_data, old_scale = int8.data.clone(), int8.scale.clone()
    new = 3 * torch.randn(num_rows, 2, 8, generator=generator)
    slots = torch.tensor(random.Random(num_rows).sample(range(36), num_rows), dtype=torch.int64)
    write_kv(int8, new.to(device), slots.to(device))
    blocks = torch.arange(9, device=device)[None]
    got = int8.gather(blocks, torch.float32)[0].flatten(0, 1).cpu()
    step = new.abs().amax(-1, keepdim=True) / 127
    assert ((got[slots] - new).abs() <= 0.501 * step).all()
    kept = torch.ones(36, dtype=torch.bool)
    kept[slots] = False
    assert torch.equal(int8.data.flatten(0, 1).cpu()[kept], old_data.flatten(0, 1).cpu()[kept])
    assert torch.equal(int8.scale.flatten(0, 1).cpu()[kept], old_scale.flatten(0, 1).cpu()[kept])


def test_int8_keeps_zeros_and_the_smallest_numbers(device: torch.device) -> None:
    cache = torch.zeros(2, 4, 1, 8)
    cache[1] = 1e-42
    got = create_int8(cache, device).gather(torch.tensor([[0, 1]], device=device), torch.float32)
    assert got[0, 0].count_nonzero() == 0
    assert (got[0, 1] - 1e-42).abs().max() <= 1e-42


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["k_cache", "v_cache"])
@pytest.mark.parametrize("head_dim", [1, 8])
def test_int8_lets_what_is_not_finite_show(
    value: float, which: str, head_dim: int, device: torch.device
) -> None:
    case = create_case([(9, 40)], head_dim=head_dim)
    getattr(case, which)[case.tables[0][0], 1, 1, 0] = value  # one element of one head
    got = run_int8(case, device)
    assert not got[:, 3:].isfinite().any()
    assert got[:, :3].isfinite().all()
