"""rms_norm against its twin."""

from __future__ import annotations

import pytest
import torch

from weft_kernels import reference
from weft_kernels.norm import rms_norm


@pytest.mark.parametrize("width", [1, 7, 133])
@pytest.mark.parametrize("rows", [(0,), (1,), (7, 3), (133,)])
def test_it_is_the_twin(
    rows: tuple[int, ...], width: int, device: torch.device, generator: torch.Generator
) -> None:
    x = torch.randn(*rows, width, generator=generator)
    weight = torch.randn(width, generator=generator)
    got = rms_norm(x.to(device), weight.to(device), 1e-6)
    assert got.dtype is torch.float32
    want = reference.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-6)


def test_heads_of_a_fused_projection_may_be_strided(
    device: torch.device, generator: torch.Generator
) -> None:
    fused = torch.randn(7, 3 * 4 * 8, generator=generator)
    weight = torch.randn(8, generator=generator)
    heads = fused.to(device)[:, 32:64].view(7, 4, 8)
    assert not heads.is_contiguous()
    got = rms_norm(heads, weight.to(device), 1e-6)
    want = reference.rms_norm(fused[:, 32:64].reshape(7, 4, 8), weight, 1e-6)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-6)


def test_the_mean_of_bfloat16_values_is_taken_in_more_precision(device: torch.device) -> None:
    # 4096 squares of 1 and then some: a bfloat16 sum would stop growing at 256
    x = torch.ones(1, 4096, dtype=torch.bfloat16, device=device)
    got = rms_norm(x, torch.ones(4096, dtype=torch.bfloat16, device=device), 1e-6)
    assert (got == 1).all()


def test_a_row_of_zeros_stays_zero_and_a_bad_row_stays_alone(device: torch.device) -> None:
    x = torch.zeros(3, 8, device=device)
    x[1] = float("nan")
    got = rms_norm(x, torch.ones(8, device=device), 1e-6)
    assert (got[[0, 2]] == 0).all()
    assert got[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_head_may_have_weights_of_its_own(
    dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> None:
    x = torch.randn(7, 4, 8, generator=generator).to(dtype)
    weight = torch.randn(4, 8, generator=generator).to(dtype)
    got = rms_norm(x.to(device), weight.to(device), 1e-6)
    assert got.dtype is dtype
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for head in range(4):
        want = reference.rms_norm(x[:, head], weight[head], 1e-6)
        torch.testing.assert_close(
            got[:, head].cpu().double(), want, rtol=tolerance, atol=tolerance
        )
