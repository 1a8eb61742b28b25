"""Tensors in huge pages are tensors like others."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from weft_kernels.memory import Arena, zeros

CPU = torch.device("cpu")
MIB = 1024 * 1024


@pytest.mark.parametrize("shape", [(0,), (3, 5), (700, 1024), (3, 5, 7, 11 * 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_zeros_are_zeros_of_their_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = zeros(*shape, dtype=dtype, device=CPU)
    assert (x.shape, x.dtype, x.device, x.is_contiguous()) == (shape, dtype, CPU, True)
    assert not x.any()
    x.fill_(1)
    assert x.sum(dtype=torch.float64) == x.numel()


def test_memory_goes_with_the_last_view() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux tells what is resident")
    view = zeros(64, MIB, dtype=torch.int8, device=CPU)[3:4]
    gc.collect()
    with_view = resident()
    assert (view == 0).all()
    del view
    gc.collect()
    assert resident() <= with_view - 60 * MIB


def test_an_arena_deals_no_byte_twice() -> None:
    arena = Arena()
    sizes = [1, 1000, 5 * MIB, 7, 3 * MIB, 0, 40, MIB]
    tensors = [arena.empty(size, dtype=torch.float32) for size in sizes]
    for number, x in enumerate(tensors):
        assert x.data_ptr() % 64 == 0
        x.fill_(number)
    for number, x in enumerate(tensors):
        assert (x == number).all()
    assert arena.empty(2, 3, dtype=torch.bfloat16).shape == (2, 3)
