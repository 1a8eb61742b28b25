"""Paged attention and the writes to its cache against their twins."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch

from weft_kernels import reference_attention
from weft_kernels.attention import (
    Int8Cache,
    create_attention_buckets,
    paged_attention,
    write_kv,
)

Span = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """Requests of given (chunk, context) lengths, with blocks dealt in random order.

    Blocks that no request has, but for the null block 0, hold NaN.
    """

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    spans: list[Span]
    tables: list[list[int]]
    block_size: int

    def twin(self, window: int | None = None) -> torch.Tensor:
        return reference_attention.paged_attention(
            self.q, self.k_cache, self.v_cache, self.spans, self.tables, 0.3, window
        )

    def run(self, device: torch.device, *windows: int | None) -> torch.Tensor:
        """With the last window; the buckets are for all of them."""
        windows = windows or (None,)
        buckets = create_attention_buckets(
            self.spans, self.tables, self.block_size, device, windows
        )
        q, k, v = (t.to(device) for t in (self.q, self.k_cache, self.v_cache))
        return paged_attention(q, k, v, buckets, 0.3, windows[-1]).cpu()


def create_case(
    lengths: list[tuple[int, int]],
    *,
    num_kv_heads: int = 2,
    groups: int = 3,
    head_dim: int = 8,
    block_size: int = 4,
) -> Case:
    generator = torch.Generator().manual_seed(2)
    needed = [-(-total // block_size) for _, total in lengths]
    num_blocks = sum(needed) + 4
    deal = list(range(1, num_blocks))
    random.Random(0).shuffle(deal)
    spans, tables, row = [], [], 0
    for (num_new, num_total), count in zip(lengths, needed, strict=True):
        spans.append((row, num_new, num_total))
        tables.append([deal.pop() for _ in range(count)])
        row += num_new
    shape = (num_blocks, block_size, num_kv_heads, head_dim)
    caches = torch.randn(2, *shape, generator=generator)
    caches[:, 0] = 0
    caches[:, deal] = float("nan")
    return Case(
        q=torch.randn(row, num_kv_heads * groups, head_dim, generator=generator),
        k_cache=caches[0],
        v_cache=caches[1],
        spans=spans,
        tables=tables,
        block_size=block_size,
    )


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


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


# ---- keys and values of 8 bits ----


def create_int8(cache: torch.Tensor, device: torch.device) -> Int8Cache:
    """Every token of a cache `[num_blocks, block_size, N, D]`, written by the operator."""
    data = torch.zeros(cache.shape, dtype=torch.int8, device=device)
    int8 = Int8Cache(data, torch.zeros(*cache.shape[:3], 1, device=device))
    slots = torch.arange(cache.shape[0] * cache.shape[1], device=device)
    write_kv(int8, cache.flatten(0, 1).to(device), slots)
    return int8


def run_int8(case: Case, device: torch.device, window: int | None = None) -> torch.Tensor:
    buckets = create_attention_buckets(case.spans, case.tables, case.block_size, device, (window,))
    k, v = create_int8(case.k_cache, device), create_int8(case.v_cache, device)
    return paged_attention(case.q.to(device), k, v, buckets, 0.3, window).cpu()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("head_dim", [1, 7, 32])
@pytest.mark.parametrize("block_size", [1, 16])
@pytest.mark.parametrize("lengths", [[(1, 1)], [(7, 7)], [(1, 133), (5, 5), (3, 17)]])
def test_int8_attention_is_the_twin_over_rounded_keys_and_values(
    lengths: list[tuple[int, int]], block_size: int, head_dim: int, window: int | None,
    device: torch.device,
) -> None:  # fmt: skip
    case = create_case(lengths, head_dim=head_dim, block_size=block_size)
    rounded = replace(
        case,
        k_cache=reference_attention.rounded_kv(case.k_cache),
        v_cache=reference_attention.rounded_kv(case.v_cache),
    )
    got = run_int8(case, device, window)
    # a value halfway between two steps may go either way in float32
    torch.testing.assert_close(got.double(), rounded.twin(window), rtol=1e-4, atol=1e-3)
    assert (got.double() - case.twin(window)).abs().max() < 0.05


@pytest.mark.parametrize("num_rows", [0, 1, 7, 30])
def test_int8_writes_go_to_their_slots_and_nowhere_else(
    num_rows: int, device: torch.device, generator: torch.Generator
) -> None:
    cache = torch.randn(9, 4, 2, 8, generator=generator)
    int8 = create_int8(cache, device)
    old_data, old_scale = int8.data.clone(), int8.scale.clone()
    new = 3 * torch.randn(num_rows, 2, 8, generator=generator)
    slots = torch.tensor(random.Random(num_rows).sample(range(36), num_rows), dtype=torch.int64)
    write_kv(int8, new.to(device), slots.to(device))
    blocks = torch.arange(9, device=device)[None]
    got = int8.gather(blocks, torch.float32)[0].flatten(0, 1).cpu()
    step = new.abs().amax(-1, keepdim=True) / 127
    assert ((got[slots] - new).abs() <= 0.501 * step).all()
    kept = torch.ones(36, dtype=torch.bool)
    kept[slots] = False
    assert torch.equal(int8.data.flatten(0, 1).cpu()[kept], old_data.flatten(0, 1).cpu()[kept])
    assert torch.equal(int8.scale.flatten(0, 1).cpu()[kept], old_scale.flatten(0, 1).cpu()[kept])


def test_int8_keeps_zeros_and_the_smallest_numbers(device: torch.device) -> None:
    cache = torch.zeros(2, 4, 1, 8)
    cache[1] = 1e-42
    got = create_int8(cache, device).gather(torch.tensor([[0, 1]], device=device), torch.float32)
    assert got[0, 0].count_nonzero() == 0
    assert (got[0, 1] - 1e-42).abs().max() <= 1e-42


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["k_cache", "v_cache"])
@pytest.mark.parametrize("head_dim", [1, 8])
def test_int8_lets_what_is_not_finite_show(
    value: float, which: str, head_dim: int, device: torch.device
) -> None:
    case = create_case([(9, 40)], head_dim=head_dim)
    getattr(case, which)[case.tables[0][0], 1, 1, 0] = value  # one element of one head
    got = run_int8(case, device)
    assert not got[:, 3:].isfinite().any()
    assert got[:, :3].isfinite().all()
