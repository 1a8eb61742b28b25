"""rms_norm against its twin."""

from __future__ import annotations

import pytest
import torch

from weft_kernels import reference
from weft_kernels.cuda.rms_norm import rms_norm

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("width", [1, 7, 128, 133])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 133])
def test_it_is_the_twin(
    num_rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    x = torch.randn(num_rows, width, generator=generator).to(dtype)
    weight = torch.randn(width, generator=generator).to(dtype)
    out = torch.full_like(x, float("nan"), device=device)
    got = rms_norm(x.to(device), weight.to(device), 1e-6, out=out)
    assert got is out
    want = reference.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(
        got.cpu().double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("num_rows", [1, 7, 33])
def test_the_residual_is_added_first_and_kept(
    num_rows: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x, delta = torch.randn(2, num_rows, 40, generator=generator).to(dtype)
    weight = torch.randn(40, generator=generator).to(dtype)
    after, delta_before = x.to(device, copy=True), delta.to(device, copy=True)
    got = rms_norm(after, weight.to(device), 1e-6, delta_before)
    assert torch.equal(after.cpu(), (x.float() + delta.float()).to(dtype))
    assert torch.equal(delta_before.cpu(), delta)
    want = reference.rms_norm(after, weight, 1e-6)
    torch.testing.assert_close(
        got.cpu().double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("block_rows", [1, 4, 16])
def test_each_head_may_have_weights_of_its_own_and_strides(
    block_rows: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    fused = torch.randn(7, 5 * 8, generator=generator).to(dtype)
    weight = torch.randn(3, 8, generator=generator).to(dtype)
    heads = fused.to(device).view(7, 5, 8)[:, 1:4]
    assert not heads.is_contiguous()
    config = {"BLOCK_ROWS": block_rows, "num_warps": 1, "num_stages": 1}
    got = rms_norm(heads, weight.to(device), 1e-6, config=config)
    assert got.shape == heads.shape
    for head in range(3):
        want = reference.rms_norm(heads[:, head], weight[head], 1e-6)
        torch.testing.assert_close(
            got[:, head].cpu().double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def test_rows_beyond_the_batch_stay_as_they_are(
    device: torch.device, generator: torch.Generator
) -> None:
    x, delta, out = torch.randn(3, 32, 8, generator=generator).to(device)
    before = x.clone(), out.clone()
    config = {"BLOCK_ROWS": 16, "num_warps": 1, "num_stages": 1}
    rms_norm(x[:7], torch.ones(8, device=device), 1e-6, delta[:7], out=out[:7], config=config)
    assert torch.equal(x[7:], before[0][7:])
    assert torch.equal(out[7:], before[1][7:])
    assert not torch.equal(x[:7], before[0][:7])


def test_it_may_write_over_its_input_and_beside_nothing_else(
    device: torch.device, generator: torch.Generator
) -> None:
    wide = torch.randn(7, 24, generator=generator)
    after = wide.to(device, copy=True)
    rms_norm(after[:, 8:16], torch.ones(8, device=device), 1e-6, out=after[:, 8:16])
    want = reference.rms_norm(wide[:, 8:16], torch.ones(8), 1e-6)
    torch.testing.assert_close(after[:, 8:16].cpu().double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(after[:, :8].cpu(), wide[:, :8])
    assert torch.equal(after[:, 16:].cpu(), wide[:, 16:])


def test_a_row_of_zeros_stays_zero_and_a_bad_row_stays_alone(device: torch.device) -> None:
    x = torch.zeros(3, 8, device=device)
    x[1, 2] = float("nan")
    got = rms_norm(x, torch.ones(8, device=device), 1e-6)
    assert (got[[0, 2]] == 0).all()
    assert got[1].isnan().all()


@pytest.mark.parametrize(
    ("x", "weight", "delta", "message"),
    [
        (torch.zeros(8), torch.ones(8), None, r"x must be \[T, D\] or \[T, N, D\]"),
        (torch.zeros(8, 2).t(), torch.ones(8), None, "unit stride"),
        (torch.zeros(2, 8), torch.ones(7), None, r"weight must be \[8\] or \[1, 8\]"),
        (torch.zeros(2, 8), torch.ones(8).half(), None, "of torch.float32"),
        (torch.zeros(2, 8), torch.ones(16)[::2], None, "weight must be contiguous"),
        (torch.zeros(2, 8), torch.ones(8), torch.zeros(3, 8), r"delta must be \(2, 8\)"),
    ],
)
def test_bad_arguments_are_refused(
    x: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, 1e-6, delta)
