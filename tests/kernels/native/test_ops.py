"""The native operators refuse what their C++ would read wrong."""

from __future__ import annotations

import pytest
import torch

from weft_kernels.native import ops
from weft_kernels.native.lora import LoraRows, SlotParts


def rotate(dim: int, kv_slots_T: torch.Tensor) -> torch.Tensor:
    cache = torch.zeros(2, 4, 1, dim)
    qkv, rotary = torch.zeros(2, 3 * dim), torch.zeros(2, 2, dim // 2)
    return ops.rotate_and_write(qkv, None, 1e-6, rotary, kv_slots_T, 1, cache, cache.clone())


def test_heads_wider_than_the_cpp_has_room_for_are_refused() -> None:
    slots_T = torch.arange(2)
    assert rotate(ops.MAX_HEAD_DIM, slots_T).shape == (2, 1, ops.MAX_HEAD_DIM)
    with pytest.raises(ValueError, match="wider than 1024"):
        rotate(ops.MAX_HEAD_DIM + 2, slots_T)
    attention = ops.Attention([(0, 1, 1)], [[0]], 4, [None])
    wide = torch.zeros(2, 4, 1, ops.MAX_HEAD_DIM + 2)
    with pytest.raises(ValueError, match="wider than 1024"):
        attention.attend(torch.zeros(1, 1, ops.MAX_HEAD_DIM + 2), wide, wide, 1.0, None)


@pytest.mark.parametrize("slots_T", [torch.arange(2, dtype=torch.int32), torch.arange(4)[::2]])
def test_slots_that_are_not_plain_int64_are_refused(slots_T: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous int64"):
        rotate(8, slots_T)


def test_pairs_that_are_not_int64_are_refused() -> None:
    rows = LoraRows([SlotParts.of([[]])], [0])
    expert_TK = torch.zeros(1, 2, dtype=torch.int64)
    rows.for_pairs(expert_TK, torch.arange(2)[None], 4)
    with pytest.raises(ValueError, match="int64"):
        rows.for_pairs(expert_TK.int(), torch.arange(2)[None], 4)
