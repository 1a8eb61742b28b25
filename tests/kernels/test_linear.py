"""A linear weight computes x W + b, in whatever layout it is kept."""

from __future__ import annotations

import pytest
import torch

from weft_kernels.linear import LinearWeight, can_pack, create_linear_weight


def create_case(rows: int, num_in: int, num_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, num_in, generator=generator)
    return x, torch.randn(num_in, num_out, generator=generator)


@pytest.mark.parametrize("rows", [0, 1, 7, 32, 133, 600])
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (7, 133), (64, 48), (512, 96)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_x_times_w_plus_bias(
    rows: int, num_in: int, num_out: int, with_bias: bool, device: torch.device
) -> None:
    x, w = create_case(rows, num_in, num_out)
    bias = torch.linspace(-1, 1, num_out) if with_bias else None
    weight = create_linear_weight(w.to(device))
    got = weight.apply(x.to(device), None if bias is None else bias.to(device)).cpu()
    want = x.double() @ w.double() + (0 if bias is None else bias.double())
    assert got.shape == (rows, num_out)
    assert (weight.num_in, weight.num_out) == (num_in, num_out)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


def test_the_packed_and_the_dense_form_agree() -> None:
    x, w = create_case(32, 512, 96)
    assert can_pack(w), "torch's CPU build has oneDNN"
    packed = create_linear_weight(w)
    assert packed.is_packed
    assert torch.equal(packed.dense(), w)
    dense = LinearWeight(512, 96, is_packed=False, _data=w)
    torch.testing.assert_close(packed.apply(x), dense.apply(x), rtol=1e-5, atol=1e-4)


def test_strided_rows_are_read_as_they_are() -> None:
    x, w = create_case(32, 64, 48)
    wide = torch.randn(32, 100)
    wide[:, 20:84] = x
    torch.testing.assert_close(
        create_linear_weight(w).apply(wide[:, 20:84]), x @ w, rtol=1e-5, atol=1e-4
    )


def test_half_precision_stays_dense_where_onednn_does_not_pack_it() -> None:
    weight = create_linear_weight(torch.ones(4, 4, dtype=torch.float16))
    assert not weight.is_packed
    out = weight.apply(torch.ones(2, 4, dtype=torch.float16))
    assert torch.equal(out, torch.full((2, 4), 4.0, dtype=torch.float16))
