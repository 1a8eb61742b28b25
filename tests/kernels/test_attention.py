"""Paged attention and the writes to its cache against their twins."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from tests.kernels.attention_cases import assert_near, create_case

from weft_kernels import reference_attention
from weft_kernels.attention import create_attention_buckets, write_kv


@pytest.mark.parametrize("total", [1, 4, 5, 7, 133])
def test_one_decoding_request_is_the_twin(total: int, device: torch.device) -> None:
    case = create_case([(1, total)])
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("lengths", [[(1, 1)], [(7, 7)], [(33, 33)], [(7, 40)], [(1, 9), (9, 9)]])
def test_a_chunk_of_a_prompt_is_the_twin(
    lengths: list[tuple[int, int]], device: torch.device
) -> None:
    case = create_case(lengths)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("seed", range(6))
def test_a_mixed_batch_is_the_twin(seed: int, device: torch.device) -> None:
    rng = random.Random(seed)
    totals = [rng.choice([1, 2, 3, 4, 5, 16, 17, 60]) for _ in range(9)]
    case = create_case([(rng.choice([1, rng.randint(1, total)]), total) for total in totals])
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize(("num_kv_heads", "groups"), [(1, 1), (3, 1), (1, 7), (2, 4)])
@pytest.mark.parametrize("head_dim", [1, 7, 32])
@pytest.mark.parametrize("block_size", [1, 16])
def test_ugly_sizes_are_the_twins(
    num_kv_heads: int, groups: int, head_dim: int, block_size: int, device: torch.device
) -> None:
    case = create_case(
        [(1, 18), (5, 5), (3, 17)],
        num_kv_heads=num_kv_heads, groups=groups, head_dim=head_dim, block_size=block_size,
    )  # fmt: skip
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("window", [1, 2, 4, 7, 16, 133])
@pytest.mark.parametrize("lengths", [[(1, 1)], [(1, 133)], [(33, 33)], [(7, 40), (1, 9), (5, 5)]])
def test_a_window_is_the_twin(
    window: int, lengths: list[tuple[int, int]], device: torch.device
) -> None:
    case = create_case(lengths)
    assert_near(case.run(device, window), case.twin(window))


@pytest.mark.parametrize(("num_kv_heads", "groups"), [(3, 1), (1, 7)])
@pytest.mark.parametrize("block_size", [1, 16])
def test_windows_of_ugly_sizes_are_the_twins(
    num_kv_heads: int, groups: int, block_size: int, device: torch.device
) -> None:
    case = create_case(
        [(1, 18), (5, 5), (3, 17)],
        num_kv_heads=num_kv_heads, groups=groups, head_dim=7, block_size=block_size,
    )  # fmt: skip
    assert_near(case.run(device, None, 3, 5), case.twin(5))
    assert_near(case.run(device, 3, 5, None), case.twin())


def test_a_query_does_not_see_what_fell_out_of_its_window(device: torch.device) -> None:
    case = create_case([(6, 6)])
    got = case.run(device, 3)
    block = case.tables[0][0]
    case.k_cache[block, 2] += 3.0
    case.v_cache[block, 2] += 3.0
    changed = case.run(device, 3)
    assert torch.equal(changed[[0, 1, 5]], got[[0, 1, 5]])
    for row in (2, 3, 4):
        assert not torch.equal(changed[row], got[row])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_although_out_of_the_window(
    value: float, device: torch.device
) -> None:
    """The runner looks at a request's last row to learn that none of its blocks is spoilt."""
    for cache in ("k_cache", "v_cache"):
        case = create_case([(9, 40)])
        getattr(case, cache)[case.tables[0][0], 1] = value
        assert not case.run(device, 5)[-1].isfinite().all()


def test_masks_are_built_once_for_each_window(device: torch.device) -> None:
    case = create_case([(1, 9), (9, 9)])
    buckets = create_attention_buckets(case.spans, case.tables, case.block_size, device, (5, None))
    assert [list(bucket.masks) for bucket in buckets] == [[5, None]] * 2
    plain = create_attention_buckets(case.spans, case.tables, case.block_size, device)
    assert [list(bucket.masks) for bucket in plain] == [[None]] * 2


def test_a_query_does_not_see_what_comes_after_it(device: torch.device) -> None:
    case = create_case([(6, 6), (1, 6)])
    got = case.run(device)
    block, place = case.tables[0][1], 1  # token 5, the last one
    case.k_cache[block, place] += 3.0
    case.v_cache[block, place] += 3.0
    changed = case.run(device)
    assert torch.equal(changed[:5], got[:5])
    assert not torch.equal(changed[5], got[5])
    assert torch.equal(changed[6], got[6])


def test_a_request_does_not_see_the_blocks_of_another(device: torch.device) -> None:
    case = create_case([(1, 9), (4, 9), (1, 10)])
    got = case.run(device)
    others = case.tables[0] + case.tables[2]
    case.k_cache[others] = case.v_cache[others] = float("nan")
    changed = case.run(device)
    assert torch.equal(changed[1:5], got[1:5])
    assert changed[[0, 5]].isnan().all()


def test_more_blocks_than_the_context_needs_change_nothing(device: torch.device) -> None:
    case = create_case([(1, 6), (3, 11)])
    spare = replace(case, tables=[[*blocks, 1] for blocks in case.tables])
    assert torch.equal(spare.run(device), case.run(device))


def test_the_batch_around_it_changes_a_request_by_rounding_only(device: torch.device) -> None:
    case = create_case([(1, 9), (4, 9), (1, 60)])
    first, num_new, _ = case.spans[1]
    alone = replace(
        case, q=case.q[first : first + num_new], spans=[(0, 4, 9)], tables=[case.tables[1]]
    )
    torch.testing.assert_close(
        alone.run(device), case.run(device)[first : first + num_new], rtol=1e-5, atol=1e-5
    )


def test_the_same_batch_gives_the_same_bits(device: torch.device) -> None:
    case = create_case([(1, 9), (4, 9), (1, 60), (17, 40)])
    assert torch.equal(case.run(device), case.run(device))


def test_an_empty_batch_has_no_buckets(device: torch.device) -> None:
    case = create_case([])
    assert case.run(device).shape == (0, 6, 8)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 30])
def test_writes_go_to_their_slots_and_nowhere_else(
    num_rows: int, device: torch.device, generator: torch.Generator
) -> None:
    cache = torch.randn(9, 4, 2, 8, generator=generator)
    # as the engine has them: a slice of a fused projection
    fused = torch.randn(num_rows, 48, generator=generator)
    slots = random.Random(num_rows).sample(range(36), num_rows)
    want = reference_attention.write_kv(cache, fused[:, 16:32].view(-1, 2, 8), slots)
    on_device, new = cache.to(device), fused.to(device)[:, 16:32].view(-1, 2, 8)
    write_kv(on_device, new, torch.tensor(slots, dtype=torch.int64, device=device))
    assert torch.equal(on_device.cpu().double(), want)
