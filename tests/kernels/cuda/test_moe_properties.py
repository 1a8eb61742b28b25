"""Properties of grouping and of the whole operator, where hypothesis is there to look for holes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.cuda.moe_cases import (
    PATHS,
    Case,
    assert_near,
    check_groups,
    create_adapter,
    create_weights,
    poisoned_memory,
)

from weft_kernels.cuda import pair_groups
from weft_kernels.cuda.pair_groups import group_pairs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@st.composite
def _batches(draw: st.DrawFn) -> tuple[list[list[int]], int, list[int], int]:
    """Distinct experts for each token, null ones included, and its slot."""
    num_experts, num_slots = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    top_k = draw(st.integers(1, num_experts))
    num_rows = draw(st.integers(1, 40))
    row = st.permutations(range(num_experts + draw(st.integers(0, 2))))
    experts = [draw(row)[:top_k] for _ in range(num_rows)]
    slot = st.integers(-1, num_slots)  # num_slots itself is no slot
    return (
        experts,
        num_experts,
        draw(st.lists(slot, min_size=num_rows, max_size=num_rows)),
        num_slots,
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(batch=_batches())
def test_pairs_are_sorted_and_cut_into_tiles(
    batch: tuple[list[list[int]], int, list[int], int],
) -> None:
    experts, num_experts, slots, num_slots = batch
    experts_TK = torch.tensor(experts, dtype=torch.int32, device=DEVICE)
    slots_T = torch.tensor(slots, dtype=torch.int32, device=DEVICE)
    groups = group_pairs(experts_TK, num_experts, slots_T, num_slots)
    check_groups(groups, experts, num_experts, slots, num_slots)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_groups, "MAX_COMPARED_PAIRS", 0)
        by_sort = group_pairs(experts_TK, num_experts, slots_T, num_slots)
    check_groups(by_sort, experts, num_experts, slots, num_slots)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    top_k=st.integers(1, 3),
    ranks=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    rows=st.lists(st.integers(-1, 3), max_size=24),
    path=st.sampled_from(sorted(PATHS)),
    seed=st.integers(0, 99),
)
def test_adapters_of_any_batch_are_the_twin(
    top_k: int, ranks: list[int], rows: list[int], path: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = create_weights(generator, num_experts=3, hidden=16, width=8)
    adapters = [create_adapter(generator, weights, rank) for rank in ranks]
    x = torch.randn(len(rows), 16, generator=generator)
    # slots from the number of adapters on are empty
    case = Case(x, weights, top_k, adapters, rows, seed=seed)
    with poisoned_memory():
        assert_near(case.run(DEVICE, PATHS[path]), case.twin())
