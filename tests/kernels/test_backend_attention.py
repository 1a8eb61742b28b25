"""Attention of every backend is the twin's."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from tests.kernels.backend_cases import CPU, Step, assert_near, create_step

from weft_kernels import reference_attention
from weft_kernels.attention import Int8Cache
from weft_kernels.backend import Backend


@pytest.mark.parametrize("total", [1, 4, 5, 7, 16, 17, 133])
@pytest.mark.parametrize("window", [None, 1, 5, 200])
def test_decoding_requests_are_the_twin(backend: Backend, total: int, window: int | None) -> None:
    step = create_step([(1, total), (1, 3), (1, total + 30)])
    assert_near(step.run(backend, window), step.twin(window), 1e-4)


@pytest.mark.parametrize(("num_kv_heads", "groups"), [(1, 1), (3, 2), (1, 7), (2, 4), (1, 9)])
@pytest.mark.parametrize("head_dim", [1, 7, 16, 40, 64, 128])
def test_any_shape_of_heads_is_the_twin(
    backend: Backend, num_kv_heads: int, groups: int, head_dim: int
) -> None:
    step = create_step(
        [(1, 9), (1, 21)], num_kv_heads=num_kv_heads, groups=groups, head_dim=head_dim
    )
    assert_near(step.run(backend), step.twin(), 1e-4)


@pytest.mark.parametrize("block_size", [1, 3, 16, 24])
@pytest.mark.parametrize("window", [None, 6])
def test_blocks_of_any_size_are_the_twin(
    backend: Backend, block_size: int, window: int | None
) -> None:
    step = create_step([(1, 50), (7, 30), (1, 1), (3, 3)] * 3, block_size=block_size)
    assert_near(step.run(backend, window), step.twin(window), 1e-4)


@functools.cache
def _long_step(window: int | None) -> tuple[Step, torch.Tensor]:
    """The twin takes seconds for hundreds of queries; it is the same for every backend."""
    lengths = [(520, 520), (7, 30), (1, 540), (40, 513), (512, 512), (1, 1)]
    step = create_step(lengths, num_kv_heads=1, groups=2)
    return step, step.twin(window)


@pytest.mark.parametrize("window", [None, 100])
def test_prompts_short_and_long_in_one_step_are_the_twin(
    backend: Backend, window: int | None
) -> None:
    step, twin = _long_step(window)
    assert_near(step.run(backend, window), twin, 1e-4)


def test_no_request_is_no_work(backend: Backend) -> None:
    assert create_step([]).run(backend).shape == (0, 6, 8)


def test_a_value_that_is_not_finite_reaches_only_its_own_request(backend: Backend) -> None:
    for cache in ("k_cache", "v_cache"):
        step = create_step([(1, 40), (1, 40), (1, 40)])
        getattr(step, cache)[step.tables[1][3], 2, :, 0] = torch.nan
        assert step.run(backend).flatten(1).isfinite().all(1).tolist() == [True, False, True]


def test_large_scores_do_not_overflow(backend: Backend) -> None:
    step = create_step([(1, 40), (1, 7)])
    step.q.mul_(1e3)
    assert_near(step.run(backend), step.twin(), 1e-4)


def test_an_int8_cache_gives_the_twin_of_its_rounded_values(backend: Backend) -> None:
    step = create_step([(1, 40), (5, 9), (1, 7)])
    used = sorted(block for blocks in step.tables for block in blocks)
    data = torch.zeros(step.k_cache.shape, dtype=torch.int8)
    caches = [Int8Cache(data.clone(), torch.zeros(*data.shape[:3], 1)) for _ in range(2)]
    for cache, plain in zip(caches, (step.k_cache, step.v_cache), strict=True):
        slots = torch.tensor([b * step.block_size + i for b in used for i in range(4)])
        cache.write(plain[used].flatten(0, 1), slots)
    attention = backend.create_attention(step.spans, step.tables, step.block_size, CPU, (None,))
    got = attention.attend(step.q, caches[0], caches[1], 0.3, None)
    k, v = (reference_attention.rounded_kv(c.nan_to_num(0)) for c in (step.k_cache, step.v_cache))
    assert_near(got, replace(step, k_cache=k, v_cache=v).twin(), 1e-4)
