"""A linear weight computes x W + b, in whatever layout it is kept."""

from __future__ import annotations

import pytest
import torch

from weft_kernels import reference
from weft_kernels.linear import TorchLinear, can_pack, create_linear_weight
from weft_kernels.moe import expert_mm
from weft_kernels.quantized import group_size, quantize, quantized_bytes


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
    dense = TorchLinear(512, 96, is_packed=False, _data=w)
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


def twin_of(w: torch.Tensor, quantization: str) -> torch.Tensor:
    if quantization == "int8":
        return reference.rounded_int8(w)
    return reference.rounded_int4(w, group_size(w.shape[0]))


def assert_rounded(got: torch.Tensor, w: torch.Tensor, quantization: str) -> None:
    """The twin's values, but where w lies halfway between two of them, whichever."""
    twin, wide = twin_of(w, quantization), w.double()
    torch.testing.assert_close((got.double() - wide).abs(), (twin - wide).abs(), rtol=0, atol=1e-5)
    assert ((got.double() - twin).abs() > 1e-5).sum() <= 2 + 1e-4 * w.numel()


@pytest.mark.parametrize("rows", [0, 1, 7, 133])
@pytest.mark.parametrize(
    ("quantization", "num_in", "num_out"),
    [("int8", 1, 1), ("int8", 7, 133), ("int8", 133, 7), ("int8", 1536, 300),
     ("int4", 32, 1), ("int4", 96, 133), ("int4", 192, 7), ("int4", 1536, 300)],
)  # fmt: skip
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_quantized_weight_is_x_times_the_rounded_w(
    rows: int, quantization: str, num_in: int, num_out: int, with_bias: bool, device: torch.device
) -> None:
    x, w = create_case(rows, num_in, num_out)
    bias = torch.linspace(-1, 1, num_out) if with_bias else None
    weight = create_linear_weight(w.to(device), quantization)
    got = weight.apply(x.to(device), None if bias is None else bias.to(device)).cpu()
    used = weight.dense().cpu()
    assert_rounded(used, w, quantization)
    want = x.double() @ used.double() + (0 if bias is None else bias.double())
    assert got.shape == (rows, num_out)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize(("quantization", "share"), [("int8", 0.26), ("int4", 0.19)])
def test_a_quantized_weight_is_as_small_as_it_says(quantization: str, share: float) -> None:
    _, w = create_case(1, 512, 1000)
    weight = create_linear_weight(w, quantization)
    assert weight.num_bytes == quantized_bytes(512, 1000, w.dtype, quantization)
    assert weight.num_bytes < share * create_linear_weight(w).num_bytes


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_quantized_weight_of_half_precision_keeps_its_precision(
    quantization: str, dtype: torch.dtype, device: torch.device
) -> None:
    x, w = create_case(7, 256, 48)
    weight = create_linear_weight(w.to(device, dtype), quantization)
    got = weight.apply(x.to(device, dtype)).cpu()
    assert got.dtype is dtype
    used = weight.dense().cpu().double()
    want = x.to(dtype).double() @ used
    assert (got.double() - want).abs().max() < 0.01 * want.abs().max()
    error = (used - w.double()).abs().max()
    # scales and minima are of half precision as well
    assert error < 2 * (twin_of(w, quantization) - w.double()).abs().max()


def test_rows_of_the_int8_form_do_not_overflow_float16() -> None:
    weight = create_linear_weight(torch.full((64, 4), 0.01, dtype=torch.float16), "int8")
    out = weight.apply(torch.full((1, 64), 100.0, dtype=torch.float16)).float()
    torch.testing.assert_close(out, torch.full((1, 4), 64.0), rtol=0.01, atol=0)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_equal_weights_are_exact(quantization: str) -> None:
    for value in (0.0, 3.5):
        w = torch.full((64, 5), value)
        assert torch.equal(create_linear_weight(w, quantization).dense(), w)


@pytest.mark.parametrize("num_in", [1, 31, 48, 133])
def test_int4_says_which_inputs_do_not_divide_into_groups(num_in: int) -> None:
    with pytest.raises(ValueError, match=f"groups of 32, and there are {num_in}"):
        create_linear_weight(torch.ones(num_in, 4), "int4")


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(quantization: str, value: float) -> None:
    w = torch.ones(32, 4)
    w[3, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        create_linear_weight(w, quantization)


def test_another_quantization_is_refused() -> None:
    with pytest.raises(ValueError, match="int8, int4"):
        create_linear_weight(torch.ones(32, 4), "int2")


@pytest.mark.parametrize("num_rows", [1, 7, 133])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_experts_are_their_dense_values(
    num_rows: int, quantization: str, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    w = torch.randn(12, 96, 40, generator=generator)
    x = torch.randn(num_rows, 96, generator=generator)
    expert = torch.randint(0, 12, (num_rows,), generator=generator).sort().values
    expert[expert == 5] = 6  # idle ones in between
    ends = torch.searchsorted(expert, torch.arange(12), right=True).to(torch.int32)
    matrices = quantize(w.to(device), quantization)
    got = expert_mm(x.to(device), matrices, ends.to(device)).cpu()
    dense = matrices.dense().cpu()
    for got_IO, w_IO in zip(dense, w, strict=True):
        assert_rounded(got_IO, w_IO, quantization)
    want = torch.bmm(x.double()[:, None], dense.double()[expert])[:, 0]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-4)
