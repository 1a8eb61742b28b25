"""Every backend computes what the twins say, and keeps the same promises."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tests.kernels.backend_cases import CPU, assert_near, create_step

from weft_kernels import reference, reference_attention
from weft_kernels.backend import Backend, create_backend
from weft_kernels.rotary import Rope, create_rotary_table

EPS = 1e-6


@pytest.mark.parametrize("num_rows", [*range(10), 32, 133])
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (7, 133), (513, 32), (64, 48), (1100, 96)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_linear_is_x_times_w_plus_bias(
    backend: Backend, num_rows: int, num_in: int, num_out: int, has_bias: bool,
    generator: torch.Generator,
) -> None:  # fmt: skip
    x = torch.randn(num_rows, num_in + 3, generator=generator)[:, 2:-1]
    w = torch.randn(num_in, num_out, generator=generator)
    bias = torch.randn(num_out, generator=generator) if has_bias else None
    weight = backend.create_linear_weight(w)
    assert (weight.num_in, weight.num_out, weight.num_bytes) == (num_in, num_out, w.nbytes)
    assert torch.equal(weight.dense(), w)
    want = x.double() @ w.double() + (0 if bias is None else bias.double())
    torch.testing.assert_close(weight.apply(x, bias).double(), want, rtol=1e-5, atol=1e-4)


def test_rows_of_a_linear_do_not_depend_on_their_neighbours(backend: Backend) -> None:
    # oneDNN chooses another order of sums for each number of rows
    tolerance = 0 if backend.name == "native" else 1e-4
    weight, x = backend.create_linear_weight(torch.randn(700, 70)), torch.randn(21, 700)
    x[4, 9] = torch.nan
    together = weight.apply(x)
    for t, row in enumerate(x):
        torch.testing.assert_close(
            together[t], weight.apply(row[None])[0], rtol=tolerance, atol=tolerance, equal_nan=True
        )
    assert together.isfinite().all(1).sum() == 20


def test_a_quantized_linear_is_the_same_in_every_backend(backend: Backend) -> None:
    w, x = torch.randn(64, 96), torch.randn(7, 64)
    for quantization in ("int8", "int4"):
        want = Backend().create_linear_weight(w, quantization).apply(x)
        assert torch.equal(backend.create_linear_weight(w, quantization).apply(x), want)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 133])
@pytest.mark.parametrize("width", [1, 7, 16, 133, 512])
def test_the_norm_of_a_sum_is_the_twins_and_the_sum_stays(
    backend: Backend, num_rows: int, width: int, generator: torch.Generator
) -> None:
    x, delta = torch.randn(2, num_rows, width, generator=generator)
    weight = torch.randn(width, generator=generator)
    stream = x.clone()
    assert_near(
        backend.add_rms_norm_(stream, None, weight, EPS), reference.rms_norm(x, weight, EPS)
    )
    assert torch.equal(stream, x)
    got = backend.add_rms_norm_(stream, delta, weight, EPS)
    assert_near(got, reference.rms_norm(x + delta, weight, EPS))
    assert torch.equal(stream, x + delta)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 133])
@pytest.mark.parametrize("width", [1, 7, 16, 133, 512])
def test_the_gate_is_the_twins(
    backend: Backend, num_rows: int, width: int, generator: torch.Generator
) -> None:
    gate_up = 8 * torch.randn(num_rows, 2 * width, generator=generator)
    assert_near(backend.silu_mul(gate_up), reference.silu_mul(gate_up))


def test_the_gate_of_extreme_values_is_exact(backend: Backend) -> None:
    gate = torch.tensor([-1e30, -104.0, -88.5, -87.0, -1e-30, 0.0, 1e-30, 88.9, 1e30, torch.inf])
    got = backend.silu_mul(torch.cat((gate, torch.ones(len(gate))))[None])
    assert_near(got, reference.silu_mul(torch.cat((gate, torch.ones(len(gate))))[None]), 1e-6)


@pytest.mark.parametrize("vocab", [1, 7, 16, 133, 8192])
def test_the_best_token_is_the_first_of_the_largest(
    backend: Backend, vocab: int, generator: torch.Generator
) -> None:
    logits = torch.randn(33, vocab, generator=generator)
    logits[5] = -3.0
    logits[6] -= 100
    logits[7, vocab // 2 :] = 50.0
    tokens, is_finite = backend.greedy(logits)
    assert (tokens.dtype, is_finite.dtype) == (torch.int64, torch.bool)
    assert torch.equal(tokens, torch.tensor([row.tolist().index(row.max()) for row in logits]))
    assert is_finite.all()


def test_rows_of_logits_that_are_not_finite_are_told(backend: Backend) -> None:
    logits = torch.randn(6, 50)
    logits[1, 49], logits[2, 3], logits[3, 20] = torch.nan, torch.inf, -torch.inf
    logits[5] = 3e38  # the sum overflows, and no term of it
    tokens, is_finite = backend.greedy(logits)
    assert is_finite.tolist() == [True, False, False, False, True, True]
    assert tokens[4] == logits[4].argmax()
    assert backend.greedy(torch.empty(0, 5))[0].shape == (0,)


def test_a_row_that_is_not_finite_stays_alone(backend: Backend) -> None:
    for bad in (torch.nan, torch.inf):
        x, gate_up = torch.zeros(3, 24), torch.ones(3, 48)
        x[1, 5], gate_up[1, 5] = bad, torch.nan
        y = backend.add_rms_norm_(x, torch.zeros(3, 24), torch.ones(24), EPS)
        assert not y[1].isfinite().all()
        assert (y[[0, 2]] == 0).all()
        assert backend.silu_mul(gate_up).isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("head_dim", [2, 6, 32, 64, 128])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (6, 2), (8, 1)])
@pytest.mark.parametrize("has_norms", [False, True])
def test_heads_are_normalised_rotated_and_written(
    backend: Backend, num_heads: int, num_kv_heads: int, head_dim: int, has_norms: bool,
    generator: torch.Generator,
) -> None:  # fmt: skip
    num_rows, num_qk = 7, num_heads + num_kv_heads
    positions, slots = [0, 1, 63, 5, 2, 40, 7], [3, 19, 8, 0, 31, 30, 16]
    qkv = torch.randn(num_rows, (num_qk + num_kv_heads) * head_dim, generator=generator)
    norms = torch.randn(num_qk, head_dim, generator=generator) if has_norms else None
    table = create_rotary_table(64, head_dim, Rope(theta=1e4), CPU)
    k_cache, v_cache = torch.randn(2, 4, 8, num_kv_heads, head_dim, generator=generator)
    heads = qkv.view(num_rows, -1, head_dim)
    qk, v = heads[:, :num_qk].double(), heads[:, num_qk:]
    if norms is not None:
        qk = torch.stack(
            [reference.rms_norm(qk[:, h], norms[h], EPS) for h in range(num_qk)], dim=1
        )
    want = reference.rotary(qk, positions, Rope(theta=1e4))
    want_k = reference_attention.write_kv(k_cache, want[:, num_heads:], slots)
    want_v = reference_attention.write_kv(v_cache, v, slots)
    q = backend.rotate_and_write(
        qkv, norms, EPS, table[torch.tensor(positions)], torch.tensor(slots), num_heads,
        k_cache, v_cache,
    )  # fmt: skip
    assert_near(q, want[:, :num_heads], 1e-4)
    assert_near(k_cache, want_k, 1e-4)
    assert torch.equal(v_cache.double(), want_v)


def test_threads_do_not_change_a_bit(backend: Backend) -> None:
    step = create_step([(1, 300)] * 9, num_kv_heads=2, groups=4, head_dim=64)
    gate_up, weight = torch.randn(64, 1024), torch.randn(1024)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            normed = backend.add_rms_norm_(gate_up.clone(), gate_up, weight, EPS)
            results.append((step.run(backend), backend.silu_mul(gate_up), normed))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_auto_takes_the_fastest_and_says_what_it_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert create_backend("auto", CPU, torch.bfloat16).name == "torch"
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    from weft_kernels.native.binding import library

    library.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert create_backend("auto", CPU, torch.float32).name == "torch"
    assert "no C++ compiler" in caplog.text
    with pytest.raises(ValueError, match=r"native kernels cannot be built: no C\+\+ compiler"):
        create_backend("native", CPU, torch.float32)


def test_a_backend_that_is_unknown_or_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="one of auto, torch, native, triton, not 'fast'"):
        create_backend("fast", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"float32 on the CPU, not torch.bfloat16 on cpu"):
        create_backend("native", CPU, torch.bfloat16)
