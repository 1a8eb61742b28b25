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
