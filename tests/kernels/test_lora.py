"""adapted_linear against its twin: popularities, ranks, layouts, and what must not show through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.kernels.lora_cases import (
    BASE_ONLY,
    NUM_ADAPTERS,
    assert_near,
    create_case,
    to_device,
)

from weft_kernels.linear import create_linear_weight
from weft_kernels.lora import (
    LoraBatch,
    adapted_linear,
    add_lora_,
    create_rank_group,
    create_terms,
)
from weft_kernels.popularity import POPULARITIES, assign_adapters


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("num_rows", [1, 7, 133])
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_mixed_ranks_are_the_twins(
    popularity: str, num_rows: int, is_joint: bool, device: torch.device
) -> None:
    case = create_case(assign_adapters(popularity, num_rows, NUM_ADAPTERS, seed=0))
    assert_near(case.run(device, is_joint=is_joint), case.twin())


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_rows_that_lie_side_by_side_are_the_twins(popularity: str, device: torch.device) -> None:
    case = create_case([])
    rows = assign_adapters(popularity, 40, NUM_ADAPTERS, seed=3)
    order = [a for adapters in case.slots().values() for a in adapters]
    case = create_case([BASE_ONLY] * 3 + sorted(rows, key=order.index))
    grids = [grid for group in case.groups(device) for grid in group.grids]
    assert any(grid.span is not None for grid in grids)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("seed", range(4))
def test_prompts_beside_decoding_rows_are_the_twins(seed: int, device: torch.device) -> None:
    # three prompts of very different lengths among rows of their own kind
    rows = assign_adapters("uniform", 20, NUM_ADAPTERS, seed) + [1] * 90 + [2] * 70 + [7] * 17
    case = create_case(rows, ranks=[16])
    grids = case.groups(device)[0].grids
    assert len(grids) == 4, "few rows, and each length of the prompts"
    assert all(grid.is_even and grid.span is not None for grid in grids[1:])
    assert_near(case.run(device), case.twin())


def test_evenly_filled_slots_get_one_grid(device: torch.device) -> None:
    even = create_rank_group(8, 4, range(8), [0, 0, 1, 1, 2, 2, 3, 3], device)
    [grid] = even.grids
    assert grid.is_even
    assert grid.slots is None
    assert grid.span == (0, 8)
    mixed = create_rank_group(8, 4, range(8), [3, 1, 0, 2, 1, 3, 2, 0], device)
    [grid] = mixed.grids
    assert grid.is_even
    assert grid.span is None
    assert grid.grid_rows.tolist() == [2, 7, 1, 4, 3, 6, 0, 5]


def test_a_few_used_slots_of_many_are_taken_out(device: torch.device) -> None:
    few = create_rank_group(8, 9, range(4), [5, 5, 2, 2], device).grids[0]
    assert few.slots is not None
    assert few.slots.tolist() == [2, 5]
    assert few.grid_rows.tolist() == [2, 3, 0, 1]
    most = create_rank_group(8, 4, range(4), [3, 3, 2, 2], device).grids[0]
    assert most.slots is None
    assert most.num_slots == 4


def test_prompts_of_one_length_share_a_grid_also_for_one_adapter(device: torch.device) -> None:
    slots = [4] * 20 + [1] * 20 + [4] * 20
    [grid] = create_rank_group(8, 9, [*range(40), *range(50, 70)], slots, device).grids
    assert grid.slots is not None
    assert grid.slots.tolist() == [4, 1, 4]
    assert grid.is_even


@pytest.mark.parametrize("rank", [4, 8, 12, 24, 64])
def test_every_rank_is_the_twins(rank: int, device: torch.device) -> None:
    case = create_case(assign_adapters("zipf", 21, 5, seed=1), ranks=[rank], num_adapters=5)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize(("num_in", "widths"), [(1, (1,)), (7, (133,)), (133, (1,)), (64, (64,))])
@pytest.mark.parametrize("with_bias", [True, False])
def test_ugly_sizes_are_the_twins(
    num_in: int, widths: tuple[int, ...], with_bias: bool, device: torch.device
) -> None:
    rows = [BASE_ONLY, *assign_adapters("uniform", 6, NUM_ADAPTERS, seed=4)]
    case = create_case(rows, num_in=num_in, widths=widths, with_bias=with_bias)
    assert_near(case.run(device), case.twin())


def test_rows_without_an_adapter_get_the_base_bit_by_bit(device: torch.device) -> None:
    rows = assign_adapters("uniform", 30, NUM_ADAPTERS, seed=5)
    rows[::3] = [BASE_ONLY] * 10
    case = create_case(rows)
    got = case.run(device)
    assert_near(got, case.twin())
    base = case.run(device, LoraBatch())
    assert torch.equal(got[::3], base[::3])
    assert not torch.equal(got, base)


def test_a_batch_without_adapters_is_the_base(device: torch.device) -> None:
    case = create_case([BASE_ONLY] * 7)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("with_bias", [True, False])
def test_an_empty_batch_gives_no_rows(with_bias: bool, device: torch.device) -> None:
    assert create_case([], with_bias=with_bias).run(device).shape == (0, 141)


def test_nan_in_slots_that_no_row_uses_does_not_leak(device: torch.device) -> None:
    # only adapter 3 of ten equal ranks is in use; the others hold NaN, as freed slots may
    case = create_case([3] * 5 + [BASE_ONLY] * 2, ranks=[16])
    sites = case.pack()
    for by_rank in sites:
        for site in by_rank.values():
            for tensor in (site.a_SRI, site.b_SRO):
                tensor[:3] = tensor[4:] = float("nan")
    for num_slots in (10, 4):
        used = create_rank_group(16, num_slots, [0, 1, 2, 3, 4], [3] * 5, device)
        on_device = [{r: to_device(s, device) for r, s in by_rank.items()} for by_rank in sites]
        assert case.bias is not None
        got = adapted_linear(
            case.x.to(device), create_linear_weight(case.w.to(device)), case.bias.to(device),
            create_terms(on_device, LoraBatch((used,))), case.widths,
        )  # fmt: skip
        assert_near(got.cpu(), case.twin())


def test_a_row_that_is_not_finite_stays_alone(device: torch.device) -> None:
    # row 0 also fills the empty cells of the grid
    case = create_case(assign_adapters("uniform", 12, NUM_ADAPTERS, seed=6))
    case.x[0] = float("nan")
    got = case.run(device)
    assert got[0].isnan().all()
    assert_near(got[1:], case.twin()[1:])


def test_the_order_of_rows_and_groups_changes_nothing(device: torch.device) -> None:
    case = create_case(assign_adapters("zipf", 33, NUM_ADAPTERS, seed=7))
    forward = case.batch(device)
    got = case.run(device, forward)
    assert torch.equal(got, case.run(device, LoraBatch(forward.groups[::-1])))
    flipped = replace(case, x=case.x.flip(0), rows=case.rows[::-1])
    torch.testing.assert_close(flipped.run(device).flip(0), got, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_the_same_batch_gives_the_same_bits(popularity: str, device: torch.device) -> None:
    case = create_case(assign_adapters(popularity, 64, NUM_ADAPTERS, seed=8))
    assert torch.equal(case.run(device), case.run(device))


def test_outputs_may_be_slices_of_something_wider(device: torch.device) -> None:
    case = create_case(assign_adapters("uniform", 9, NUM_ADAPTERS, seed=9), with_bias=False)
    wide = torch.zeros(9, 500, device=device)
    sites = [{r: to_device(s, device) for r, s in by_rank.items()} for by_rank in case.pack()]
    terms = create_terms(sites, case.batch(device))
    add_lora_(wide[:, 100:241], case.x.to(device), terms, case.widths)
    want = replace(case, w=torch.zeros_like(case.w)).twin()
    assert_near(wide[:, 100:241].cpu(), want)
    assert not wide[:, :100].any()
    assert not wide[:, 241:].any()


def test_inputs_may_be_a_slice_of_something_wider(device: torch.device) -> None:
    case = create_case(assign_adapters("uniform", 9, NUM_ADAPTERS, seed=9))
    wide = torch.zeros(9, 300)
    wide[:, 50:183] = case.x
    assert_near(replace(case, x=wide[:, 50:183]).run(device), case.twin())


def test_over_1023_slots_are_the_twins(device: torch.device) -> None:
    rows = assign_adapters("distinct", 12, 1100, seed=0)
    assert max(rows) < 1100
    case = create_case(rows, ranks=[4], num_adapters=1100, num_in=8, widths=(8,))
    assert_near(case.run(device), case.twin())
