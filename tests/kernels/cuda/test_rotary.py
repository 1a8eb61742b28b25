"""rotate_heads against the twins of the norm and of the rotation."""

from __future__ import annotations

import pytest
import torch

from weft_kernels import reference
from weft_kernels.cuda.rotary import rotate_heads
from weft_kernels.rotary import Rope, create_rotary_table

TOLERANCE = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
ROPE = Rope(1e4)
MAX_LEN = 500
POSITIONS = [499, 0, 3, 3, 133, 7, 1]


def _twin(
    x: torch.Tensor, positions: list[int], weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    if weight is not None:
        heads = range(x.shape[1])
        x = torch.stack([reference.rms_norm(x[:, n], weight[n], eps) for n in heads], dim=1)
    return reference.rotary(x, positions, ROPE)


@pytest.mark.parametrize("has_norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("head_dim", [2, 14, 64])
@pytest.mark.parametrize("num_rows", [0, 1, 7])
@pytest.mark.parametrize("block_rows", [1, 8])
def test_it_is_the_twins(
    block_rows: int,
    num_rows: int,
    head_dim: int,
    has_norm: bool,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    positions = POSITIONS[:num_rows]
    x = torch.randn(num_rows, 3, head_dim, generator=generator).to(dtype)
    weight = torch.randn(3, head_dim, generator=generator).to(dtype) if has_norm else None
    got = rotate_heads(
        x.to(device, copy=True),
        torch.tensor(positions, dtype=torch.int64, device=device),
        create_rotary_table(MAX_LEN, head_dim, ROPE, device),
        weight if weight is None else weight.to(device),
        1e-6,
        config={"BLOCK_ROWS": block_rows, "num_warps": 1, "num_stages": 1},
    )
    want = _twin(x, positions, weight, 1e-6) if num_rows else x.double()
    torch.testing.assert_close(
        got.cpu().double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def test_only_the_heads_of_q_and_k_of_a_fused_projection_change(
    device: torch.device, generator: torch.Generator
) -> None:
    qkv = torch.randn(7, 5 * 8, generator=generator)
    before = qkv.view(7, 5, 8).clone()
    after = qkv.to(device, copy=True)
    heads = after.view(7, 5, 8)
    positions = torch.tensor(POSITIONS, device=device)
    got = rotate_heads(heads[:, :3], positions, create_rotary_table(MAX_LEN, 8, ROPE, device))
    assert got.data_ptr() == after.data_ptr()
    torch.testing.assert_close(
        heads[:, :3].cpu().double(), _twin(before[:, :3], POSITIONS, None, 0), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(heads[:, 3:].cpu(), before[:, 3:])


def test_rows_beyond_the_batch_stay_as_they_are(
    device: torch.device, generator: torch.Generator
) -> None:
    x = torch.randn(32, 3, 8, generator=generator).to(device)
    before = x.clone()
    positions = torch.tensor(POSITIONS, device=device)
    config = {"BLOCK_ROWS": 16, "num_warps": 1, "num_stages": 1}
    rotate_heads(x[:7], positions, create_rotary_table(MAX_LEN, 8, ROPE, device), config=config)
    assert torch.equal(x[7:], before[7:])
    assert not torch.equal(x[:7], before[:7])


def test_a_bad_row_stays_alone(device: torch.device, generator: torch.Generator) -> None:
    x = torch.randn(3, 2, 8, generator=generator)
    x[1, 0] = float("nan")
    want = _twin(x, [5, 6, 7], torch.ones(2, 8), 1e-6)
    got = rotate_heads(
        x.to(device, copy=True),
        torch.tensor([5, 6, 7], device=device),
        create_rotary_table(MAX_LEN, 8, ROPE, device),
        torch.ones(2, 8, device=device),
        1e-6,
    )
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert int(got.isnan().sum()) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_TND": torch.zeros(2, 3, 7)}, "even D"),
        ({"x_TND": torch.zeros(2, 24)}, r"x must be \[T, N, D\]"),
        ({"positions_T": torch.zeros(3, dtype=torch.int64)}, r"positions must be int64 \[2\]"),
        ({"positions_T": torch.zeros(2, dtype=torch.int32)}, r"positions must be int64 \[2\]"),
        ({"table": torch.zeros(9, 2, 8)}, r"table must be contiguous \[max_len, 2, 4\]"),
        ({"weight_ND": torch.zeros(8)}, r"weight must be contiguous \[3, 8\]"),
        ({"weight_ND": torch.zeros(3, 8).half()}, "of torch.float32"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    arguments = {
        "x_TND": torch.zeros(2, 3, 8),
        "positions_T": torch.zeros(2, dtype=torch.int64),
        "table": torch.zeros(9, 2, 4),
    }
    arguments |= change
    with pytest.raises(ValueError, match=message):
        rotate_heads(
            arguments["x_TND"],
            arguments["positions_T"],
            arguments["table"],
            arguments.get("weight_ND"),
        )
