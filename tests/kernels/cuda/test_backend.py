"""The backend of CUDA devices gives what torch's operators give."""

from __future__ import annotations

import pytest
import torch
from tests.kernels.backend_cases import create_step

from weft_kernels.attention import Int8Cache
from weft_kernels.backend import Backend, create_backend
from weft_kernels.moe import ExpertWeights, QuantizedExperts
from weft_kernels.quantized import quantize
from weft_kernels.rotary import Rope, create_rotary_table

EPS = 1e-6
TORCH = Backend()


@pytest.fixture
def backend(device: torch.device) -> Backend:
    return create_backend("triton", device, torch.float32)


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="triton kernels are for CUDA devices, not cpu"):
        create_backend("triton", cpu, torch.float32)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="computes bfloat16 wrong"):
        create_backend("triton", cpu, torch.bfloat16)
    assert create_backend("triton", cpu, torch.float32).name == "triton"
    assert create_backend("auto", cpu, torch.bfloat16).name == "torch"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_it_on_cuda() -> None:
    assert create_backend("auto", torch.device("cuda"), torch.bfloat16).name == "triton"


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_the_norm_of_a_sum_and_the_gate_are_torchs(
    backend: Backend, num_rows: int, device: torch.device
) -> None:
    x, delta = torch.randn(2, num_rows, 48, device=device)
    weight = torch.randn(48, device=device)
    for change in (None, delta):
        got, want = x.clone(), x.clone()
        assert_near(
            backend.add_rms_norm_(got, change, weight, EPS),
            TORCH.add_rms_norm_(want, change, weight, EPS),
        )
        assert_near(got, want)
    assert_near(backend.silu_mul(x), TORCH.silu_mul(x))


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("is_quantized", [False, True])
def test_heads_are_rotated_and_written_but_for_padding(
    backend: Backend, has_norms: bool, is_quantized: bool, device: torch.device
) -> None:
    num_heads, num_kv_heads, head_dim = 4, 2, 24
    num_qk = num_heads + num_kv_heads
    positions = torch.tensor([0, 1, 63, 5, 2, 40, 0], device=device)
    slots = torch.tensor([3, 19, 8, 0, 31, 30, -1], device=device)
    qkv = torch.randn(7, (num_qk + num_kv_heads) * head_dim, device=device)
    norms = torch.randn(num_qk, head_dim, device=device) if has_norms else None
    rotary = create_rotary_table(64, head_dim, Rope(theta=1e4), device)[positions]
    shape = (4, 8, num_kv_heads, head_dim)

    def cache() -> torch.Tensor | Int8Cache:
        if not is_quantized:
            return torch.zeros(shape, device=device)
        data = torch.zeros(shape, dtype=torch.int8, device=device)
        return Int8Cache(data, torch.zeros(*shape[:3], 1, device=device))

    k, v, want_k, want_v = (cache() for _ in range(4))
    args = (num_heads, want_k, want_v)
    want = TORCH.rotate_and_write(qkv[:6], norms, EPS, rotary[:6], slots[:6], *args)
    got = backend.rotate_and_write(qkv.clone(), norms, EPS, rotary, slots, num_heads, k, v)
    assert_near(got[:6], want)
    for cached, expected in ((k, want_k), (v, want_v)):
        if isinstance(cached, Int8Cache):
            assert isinstance(expected, Int8Cache)
            assert_near(cached.scale, expected.scale)
            off = cached.data.int() - expected.data.int()
            assert off.abs().max() <= 1, "a last bit may round to the next step"
        else:
            assert isinstance(expected, torch.Tensor)
            assert_near(cached, expected)


@pytest.mark.parametrize("window", [None, 6])
def test_attention_is_torchs(backend: Backend, window: int | None, device: torch.device) -> None:
    step = create_step([(1, 50), (7, 30), (1, 1), (3, 3)], head_dim=16, block_size=16)
    want = step.run(TORCH, window)
    attention = backend.create_attention(
        step.spans, step.tables, step.block_size, device, (None, window)
    )
    q, k, v = (t.to(device) for t in (step.q, step.k_cache, step.v_cache))
    assert_near(attention.attend(q, k, v, 0.3, window).cpu(), want)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_experts_are_torchs_and_padding_costs_none(
    backend: Backend, is_quantized: bool, device: torch.device
) -> None:
    x = torch.randn(5, 32, device=device)
    router, gate_up, down = (
        torch.randn(shape, device=device) / 4 for shape in ((32, 6), (6, 32, 32), (6, 16, 32))
    )
    weights: ExpertWeights | QuantizedExperts = ExpertWeights(router, gate_up, down)
    if is_quantized:
        weights = QuantizedExperts(router, quantize(gate_up, "int8"), quantize(down, "int8"))
    want = TORCH.moe(x, weights, 2, True)
    assert_near(backend.moe(x, weights, 2, True), want)
    num_tokens = torch.tensor([3], dtype=torch.int32, device=device)
    assert_near(backend.moe(x, weights, 2, True, None, num_tokens)[:3], want[:3])


def test_experts_adapters_of_another_backend_are_refused(
    backend: Backend, device: torch.device
) -> None:
    router, gate_up, down = (
        torch.randn(shape, device=device) for shape in ((32, 2), (2, 32, 32), (2, 16, 32))
    )
    x = torch.randn(1, 32, device=device)
    with pytest.raises(ValueError, match="read through page tables"):
        backend.moe(x, ExpertWeights(router, gate_up, down), 1, True, object())
