"""silu_mul against its twin."""

from __future__ import annotations

import pytest
import torch

from weft_kernels import reference
from weft_kernels.activation import silu_mul


@pytest.mark.parametrize("width", [1, 7, 133])
@pytest.mark.parametrize("rows", [0, 1, 7, 133])
def test_it_is_the_twin(
    rows: int, width: int, device: torch.device, generator: torch.Generator
) -> None:
    gate_up = 4 * torch.randn(rows, 2 * width, generator=generator)
    got = silu_mul(gate_up.to(device))
    assert got.shape == (rows, width)
    want = reference.silu_mul(gate_up)
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-5, atol=1e-6)


def test_the_gate_is_the_first_half(device: torch.device) -> None:
    off = torch.tensor([[-1000.0, 50.0]], device=device)
    assert silu_mul(off).item() == 0.0
    assert silu_mul(off.flip(1)).item() == -50_000.0


def test_large_gates_do_not_overflow(device: torch.device) -> None:
    gate_up = torch.tensor([[1e4, -1e4, 2.0, 2.0]], device=device)
    assert silu_mul(gate_up).tolist() == [[2e4, 0.0]]
