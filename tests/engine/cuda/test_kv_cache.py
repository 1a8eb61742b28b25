"""Blocks are copied whole, within a cache and between host and device, and cleaned."""

from __future__ import annotations

import pytest
import torch

from weft.engine.kv_cache import clean_blocks, copy_blocks, create_kv_cache, find_runs
from weft.engine.model.decoder import KVCache

CPU = torch.device("cpu")


def create(device: torch.device, dtype: torch.dtype, *, is_pinned: bool = False) -> KVCache:
    return create_kv_cache(2, 6, (4, 2, 8), dtype, device, is_pinned=is_pinned)


def fill(cache: KVCache) -> list[torch.Tensor]:
    """Numbers that tell blocks, layers and scales apart; a copy of them on the CPU."""
    for number, tensor in enumerate(cache.tensors()):
        values = torch.arange(tensor.numel()) % 50 + number
        tensor.copy_(values.view(tensor.shape).to(tensor.dtype))
    return [tensor.cpu().clone() for tensor in cache.tensors()]


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)


@DTYPES
def test_blocks_that_change_places_are_read_before_they_are_written(
    device: torch.device, dtype: torch.dtype
) -> None:
    cache = create(device, dtype)
    before = fill(cache)
    copy_blocks(cache, cache, [(1, 2), (2, 1), (3, 5)])
    for old, new in zip(before, cache.tensors(), strict=True):
        assert torch.equal(new.cpu(), old[[0, 2, 1, 3, 4, 3]])


@DTYPES
def test_blocks_go_to_the_host_and_come_back_elsewhere(
    device: torch.device, dtype: torch.dtype
) -> None:
    cache = create(device, dtype)
    host = create(CPU, dtype, is_pinned=device.type == "cuda")
    before = fill(cache)
    copy_blocks(cache, host, [(4, 1), (2, 3), (5, 0)])
    clean_blocks(cache, [2, 4, 5])
    copy_blocks(host, cache, [(1, 2), (3, 5), (0, 1)])
    for old, new in zip(before, cache.tensors(), strict=True):
        want = old[[0, 5, 4, 3, 4, 2]]
        want[4] = 0
        assert torch.equal(new.cpu(), want)


def test_neighbours_are_found_in_any_order() -> None:
    assert find_runs([7, 3, 4, 9, 8, 1]) == [[5], [1, 2], [0, 4, 3]]
    assert find_runs([]) == []


def test_a_block_that_is_cleaned_holds_no_nan(device: torch.device) -> None:
    cache = create(device, torch.float32)
    fill(cache)
    for tensor in cache.tensors():
        tensor[3] = torch.nan
    clean_blocks(cache, [3])
    for tensor in cache.tensors():
        assert not tensor[3].any()
        assert tensor[2].any()
