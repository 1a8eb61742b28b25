"""silu_mul against its twin."""

from __future__ import annotations

import pytest
import torch

from weft_kernels import reference
from weft_kernels.cuda.silu_mul import silu_mul

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CONFIG = {"BLOCK_I": 64, "num_warps": 1, "num_stages": 1}


@pytest.mark.parametrize("width", [1, 7, 64, 133])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 33])
def test_it_is_the_twin(
    num_rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    gate_up = torch.randn(num_rows, 2 * width, generator=generator).to(dtype)
    out = torch.full((num_rows, width), float("nan"), dtype=dtype, device=device)
    got = silu_mul(gate_up.to(device), out=out, config=CONFIG)
    assert got is out
    want = reference.silu_mul(gate_up)
    torch.testing.assert_close(
        got.cpu().double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def test_rows_may_be_strided_and_what_lies_beside_them_stays(
    device: torch.device, generator: torch.Generator
) -> None:
    wide = torch.randn(5, 30, generator=generator).to(device)
    out = torch.full((5, 20), float("nan"), device=device)
    silu_mul(wide[:, 3:25], out=out[:, 2:13])
    want = reference.silu_mul(wide[:, 3:25])
    torch.testing.assert_close(out[:, 2:13].cpu().double(), want, rtol=1e-5, atol=1e-5)
    assert out[:, :2].isnan().all()
    assert out[:, 13:].isnan().all()


def test_gates_far_from_zero_neither_overflow_nor_leak(device: torch.device) -> None:
    gate_up = torch.tensor([[-1e4, 1e4, float("nan"), 2.0, 3.0, 1.0]], device=device)
    got = silu_mul(gate_up)[0].cpu()
    assert got[:2].tolist() == [0.0, 3e4]
    assert got[2].isnan()


@pytest.mark.parametrize(
    ("gate_up", "out", "message"),
    [
        (torch.zeros(2, 3), None, r"gate_up must be \[T, 2 I\]"),
        (torch.zeros(2, 3, 4), None, r"gate_up must be \[T, 2 I\]"),
        (torch.zeros(4, 2).t(), None, "unit stride"),
        (torch.zeros(2, 4), torch.zeros(2, 3), r"out must be \[2, 2\]"),
        (torch.zeros(2, 4), torch.zeros(2, 2, dtype=torch.float64), "of torch.float32"),
    ],
)
def test_bad_arguments_are_refused(
    gate_up: torch.Tensor, out: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        silu_mul(gate_up, out=out)
