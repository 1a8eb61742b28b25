"""Row norms under an adapter against the twin, also where the adapter undoes a row."""

from __future__ import annotations

import pytest
import torch

from weft_kernels import reference, row_norms
from weft_kernels.row_norms import adapted_row_norms


def create_case(
    num_in: int, num_out: int, rank: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    shapes = ((num_in, num_out), (rank, num_in), (rank, num_out))
    w, a, b = (torch.randn(*shape, generator=generator).to(device) for shape in shapes)
    return w, a, b


@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (7, 133), (133, 7), (256, 96)])
@pytest.mark.parametrize("rank", [1, 8, 33])
@pytest.mark.parametrize("scale", [0.0, 0.02, 3.0])
def test_they_are_the_twins(
    num_in: int, num_out: int, rank: int, scale: float, device: torch.device
) -> None:
    w, a, b = create_case(num_in, num_out, rank, device)
    got = adapted_row_norms(w, a, b, scale).cpu()
    want = reference.adapted_row_norms(w, a, b, scale)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("left", [0.1, 1e-3, 1e-5, 0.0])
def test_rows_that_the_adapter_nearly_undoes_keep_their_digits(
    left: float, device: torch.device
) -> None:
    w, a, b = create_case(64, 5, 2, device)
    w[:, 1::2] = -0.5 * (a.T @ b)[:, 1::2] + left * torch.eye(64, 5, device=device)[:, 1::2]
    got = adapted_row_norms(w, a, b, 0.5).cpu()
    want = reference.adapted_row_norms(w, a, b, 0.5)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-12)
    assert float(want[1]) == pytest.approx(left, rel=0.05, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_taken_as_they_are(
    dtype: torch.dtype, device: torch.device
) -> None:
    w, a, b = create_case(96, 24, 4, device)
    got = adapted_row_norms(w.to(dtype), a, b, 0.1).cpu()
    want = reference.adapted_row_norms(w.to(dtype), a, b, 0.1)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_rows_whose_squares_overflow_keep_their_digits(device: torch.device) -> None:
    w, a, b = create_case(64, 5, 2, device)
    a *= 1e9
    b[:, 2:] *= 1e9
    got = adapted_row_norms(w, a, b, 2.0).cpu()
    want = reference.adapted_row_norms(w, a, b, 2.0)
    assert float(want.max()) > 1e19, "its square is no float32"
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_wide_weights_are_computed_in_parts(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_norms, "_MAX_ELEMENTS", 64 * 7)
    w, a, b = create_case(64, 30, 3, device)
    got = adapted_row_norms(w, a, b, 0.5).cpu()
    want = reference.adapted_row_norms(w, a, b, 0.5)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
