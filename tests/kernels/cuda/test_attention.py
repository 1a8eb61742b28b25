"""Paged attention on the device's kernels against its twin."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.kernels.cuda.attention_cases import (
    BLOCK_SIZE,
    DECODE,
    PREFILL,
    SCALE,
    assert_near,
    create_case,
    dequantized,
    quantized,
)

from weft_kernels.attention import Int8Cache
from weft_kernels.cuda.attention import paged_attention
from weft_kernels.cuda.attention_plan import (
    AttentionPlanner,
    Span,
    create_attention_metadata,
    create_attention_planner,
)
from weft_kernels.cuda.kv_write import Fp8Cache

NAN, INF = float("nan"), float("inf")


def _of_a_long_series(first: int, stop: int) -> list[Any]:
    return [pytest.param(seed, marks=pytest.mark.verify) for seed in range(first, stop)]


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Outputs and partial results start as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("total", [1, 7, 16, 31, 32, 33, 63, 64, 65, 133])
def test_one_decoding_request_is_the_twin(total: int, device: torch.device) -> None:
    case = create_case([(1, total)])
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize(
    "lengths", [[(4, 4)], [(7, 7)], [(33, 33)], [(7, 40)], [(9, 133)], [(2, 17), (40, 41)]]
)
def test_a_chunk_of_a_prompt_is_the_twin(
    lengths: list[tuple[int, int]], device: torch.device
) -> None:
    case = create_case(lengths)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("seed", [0, 1, *_of_a_long_series(2, 4)])
def test_a_mixed_batch_is_the_twin(seed: int, device: torch.device, dtype: torch.dtype) -> None:
    rng = random.Random(seed)
    totals = [rng.choice([1, 2, 7, 16, 17, 60, 133]) for _ in range(7)]
    lengths = [(rng.choice([1, rng.randint(1, min(total, 20))]), total) for total in totals]
    case = create_case(lengths, num_kv_heads=2, groups=2, dtype=dtype)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("groups", [1, 4, 7, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_head_shapes_are_the_twins(groups: int, head_dim: int, device: torch.device) -> None:
    case = create_case([(1, 70), (9, 20)], groups=groups, head_dim=head_dim)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("head_dim", [8, 80])
def test_head_dims_that_are_no_power_of_two_are_the_twins(
    head_dim: int, device: torch.device
) -> None:
    case = create_case([(1, 70), (20, 37)], head_dim=head_dim, num_kv_heads=2)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("window", [1, 7, 16, 40, 133])
@pytest.mark.parametrize("lengths", [[(1, 133), (1, 5)], [(33, 80)], [(17, 17), (3, 70)]])
def test_a_window_is_the_twin_and_what_lies_before_it_is_not_read(
    window: int, lengths: list[tuple[int, int]], device: torch.device
) -> None:
    case = create_case(lengths)
    for cache in (case.k_cache, case.v_cache):
        for (_, num_new, num_total), blocks in zip(case.spans, case.tables, strict=True):
            for j in range(num_total - num_new - window + 1):
                cache[blocks[j // BLOCK_SIZE], j % BLOCK_SIZE] = torch.nan
    assert_near(case.run(device, window), case.twin(window))


@pytest.mark.parametrize(("groups", "head_dim"), [(4, 128), (8, 64)])
@pytest.mark.parametrize("kind", [torch.float32, torch.int8])
def test_the_shipped_configurations_are_the_twins(
    groups: int, head_dim: int, kind: torch.dtype, device: torch.device
) -> None:
    planner = create_attention_planner(1, groups, head_dim, kind)
    case = create_case(
        [(1, 300), (40, 150), (1, 1)], groups=groups, head_dim=head_dim,
        decode=planner.decode, prefill=planner.prefill,
    )  # fmt: skip
    if kind == torch.int8:
        k, v = (quantized(cache, Int8Cache, device) for cache in (case.k_cache, case.v_cache))
        assert_near(case.run(device, caches=(k, v)), dequantized(case, k, v).twin())
    else:
        assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("num_padding", [1, 7])
@pytest.mark.parametrize("lengths", [[(1, 40), (1, 3)], [(9, 9)]])
def test_rows_of_padding_are_zeros(
    num_padding: int, lengths: list[tuple[int, int]], device: torch.device
) -> None:
    case = create_case(lengths, num_padding=num_padding)
    num_rows = len(case.q)
    got = case.run(device, num_rows=num_rows)
    assert torch.equal(got[-num_padding:], torch.zeros_like(got[-num_padding:]))
    live = replace(case, q=case.q[:-num_padding])
    assert_near(got[:-num_padding], live.twin())


def test_an_empty_batch_is_empty(device: torch.device) -> None:
    case = create_case([])
    assert case.run(device).shape == (0, 4, 16)
    padded = create_case([], num_padding=3)
    assert padded.run(device, num_rows=3).count_nonzero() == 0


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of the interpreter
def test_a_request_does_not_see_the_blocks_of_another(device: torch.device) -> None:
    case = create_case([(1, 70), (9, 40), (1, 33)])
    got = case.run(device)
    others = case.tables[0] + case.tables[2]
    case.k_cache[others] = case.v_cache[others] = torch.nan
    changed = case.run(device)
    assert torch.equal(changed[1:10], got[1:10])
    assert changed[[0, 10]].isnan().all()


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize(
    ("value", "which", "place"),
    [(NAN, "k_cache", 0), (INF, "k_cache", 69), (INF, "v_cache", 0), (NAN, "v_cache", 69)],
)
def test_what_is_not_finite_shows(
    value: float, which: str, place: int, device: torch.device
) -> None:
    case = create_case([(1, 70), (9, 70)], num_kv_heads=2)
    for blocks in case.tables:
        getattr(case, which)[blocks[place // BLOCK_SIZE], place % BLOCK_SIZE, 1] = value
    got = case.run(device)
    assert got[:, :4].isfinite().all()
    assert not got[[0, 9], 4:].isfinite().any(dim=-1).any()


def test_the_same_batch_gives_the_same_bits_and_others_rounding(device: torch.device) -> None:
    case = create_case([(1, 9), (1, 133), (17, 40)])
    got = case.run(device)
    assert torch.equal(case.run(device), got)
    alone = replace(case, q=case.q[1:2], spans=[(0, 1, 133)], tables=[case.tables[1]])
    torch.testing.assert_close(alone.run(device), got[1:2], rtol=1e-5, atol=1e-6)


def test_more_blocks_than_the_context_needs_change_nothing(device: torch.device) -> None:
    case = create_case([(1, 33), (9, 30)])
    spare = replace(case, tables=[[*blocks, 0] for blocks in case.tables])
    assert torch.equal(spare.run(device), case.run(device))


def test_queries_may_be_a_slice_of_a_fused_projection(device: torch.device) -> None:
    case = create_case([(1, 33), (9, 30)])
    fused = torch.full((10, 6, 16), torch.nan)
    fused[:, :4] = case.q
    metadata = create_attention_metadata(case.planner, case.spans, case.tables, device)
    caches = case.k_cache.to(device), case.v_cache.to(device)
    got = paged_attention(fused.to(device)[:, :4], *caches, metadata, SCALE)
    assert torch.equal(got.cpu(), case.run(device))


# ---- keys and values of 8 bits ----


@pytest.mark.parametrize("kind", [Int8Cache, Fp8Cache])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("lengths", [[(1, 1), (1, 133)], [(17, 40), (1, 7)]])
def test_attention_over_8_bits_is_the_twin_over_what_they_stand_for(
    lengths: list[tuple[int, int]], window: int | None, kind: type[Int8Cache] | type[Fp8Cache],
    device: torch.device, dtype: torch.dtype,
) -> None:  # fmt: skip
    case = create_case(lengths, num_kv_heads=2, groups=2, dtype=dtype)
    k, v = (quantized(cache, kind, device) for cache in (case.k_cache, case.v_cache))
    assert_near(case.run(device, window, caches=(k, v)), dequantized(case, k, v).twin(window))


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("which", [0, 1])
def test_a_scale_of_nan_shows_in_its_own_head_alone(which: int, device: torch.device) -> None:
    case = create_case([(1, 70), (9, 40)], num_kv_heads=2)
    caches = [quantized(c, Int8Cache, device) for c in (case.k_cache, case.v_cache)]
    caches[which].scale[case.tables[0][1], 3, 1] = torch.nan
    got = case.run(device, caches=(caches[0], caches[1]))
    assert got[0, 4:].isnan().all()
    assert got[0, :4].isfinite().all()
    assert got[1:].isfinite().all()


# ---- metadata that is written again and again ----


def test_a_replayed_step_keeps_nothing_of_the_step_before(device: torch.device) -> None:
    """As under a CUDA graph: one set of tensors, one grid, other requests in every step."""
    long = [(1, 133), (1, 90), (9, 64), (1, 70)]
    short = [(1, 5), (6, 20)]
    case = create_case(long + short, num_padding=2)
    planner = replace(case.planner, windows=(None, 20))
    limits = planner.limits(len(case.q), 6, 140, has_prefill=True)
    packed = torch.zeros(planner.num_ints(limits), dtype=torch.int32, device=device)
    metadata = planner.view(packed, limits)
    caches = case.k_cache.to(device), case.v_cache.to(device)
    for ids in ([0, 1, 2, 3, 4, 5], [4, 5], [], [5, 0]):
        spans: list[Span] = []
        rows: list[int] = []
        for i in ids:
            first, num_new, num_total = case.spans[i]
            spans.append((len(rows), num_new, num_total))
            rows += range(first, first + num_new)
        step = replace(case, q=case.q[rows], spans=spans, tables=[case.tables[i] for i in ids])
        ints, _ = planner.pack(step.spans, step.tables, len(case.q), limits)
        packed[: len(ints)] = torch.from_numpy(ints).to(device)
        q = torch.full_like(case.q, torch.nan)
        q[: len(rows)] = step.q
        for window in planner.windows:
            got = paged_attention(q.to(device), *caches, metadata, SCALE, window).cpu()
            assert_near(got[: len(rows)], step.twin(window))
            assert got[len(rows) :].count_nonzero() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_runs_with_the_metadata_of_the_day() -> None:
    device = torch.device("cuda")
    case = create_case([(1, 133), (1, 90), (1, 5)], dtype=torch.bfloat16)
    limits = case.planner.limits(3, 3, 140, has_prefill=False)
    packed = torch.zeros(case.planner.num_ints(limits), dtype=torch.int32, device=device)
    metadata = case.planner.view(packed, limits)
    q = case.q.to(device)
    caches = case.k_cache.to(device), case.v_cache.to(device)
    # the graph's own memory has no NaN at first: it must not be needed either
    paged_attention(q, *caches, metadata, SCALE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_attention(q, *caches, metadata, SCALE)
    for ids in ([0, 1, 2], [2], [1, 0]):
        spans = [(row, 1, case.spans[i][2]) for row, i in enumerate(ids)]
        step = replace(case, q=case.q[ids], spans=spans, tables=[case.tables[i] for i in ids])
        ints, _ = case.planner.pack(spans, step.tables, 3, limits)
        packed[: len(ints)] = torch.from_numpy(ints).to(device)
        q[: len(ids)] = step.q.to(device)
        graph.replay()
        got = out.cpu()
        assert_near(got[: len(ids)], step.twin())
        assert got[len(ids) :].count_nonzero() == 0


@pytest.mark.parametrize("seed", [*range(6), *_of_a_long_series(6, 12)])
def test_any_batch_is_the_twin(seed: int, device: torch.device) -> None:
    rng = random.Random(seed)
    totals = [rng.randint(1, 80) for _ in range(rng.randint(1, 4))]
    lengths = [(rng.randint(1, min(total, 12)), total) for total in totals]
    window, groups = rng.choice([None, 1, 13, 40]), rng.choice([1, 3, 8])
    case = create_case(lengths, groups=groups)
    assert_near(case.run(device, window), case.twin(window))


def test_wrong_arguments_are_named(device: torch.device) -> None:
    case = create_case([(1, 33)])
    metadata = create_attention_metadata(case.planner, case.spans, case.tables, device)
    q, k, v = case.q.to(device), case.k_cache.to(device), case.v_cache.to(device)
    with pytest.raises(ValueError, match="window of 7"):
        paged_attention(q, k, v, metadata, SCALE, 7)
    with pytest.raises(ValueError, match="do not go with"):
        paged_attention(q.half(), k, v, metadata, SCALE)
    with pytest.raises(ValueError, match="differ in shape"):
        paged_attention(q, k, v[1:], metadata, SCALE)
    with pytest.raises(ValueError, match="blocks of 16"):
        paged_attention(q, k[:, :8].contiguous(), v[:, :8].contiguous(), metadata, SCALE)
    with pytest.raises(ValueError, match="queries are"):
        paged_attention(q[:, :3], k, v, metadata, SCALE)
    with pytest.raises(ValueError, match="16 rows does not hold the 32 query heads"):
        AttentionPlanner(1, 32, BLOCK_SIZE, DECODE, PREFILL)
