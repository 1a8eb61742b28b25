"""Adapters of experts stay with their own rows and sites: what has none is the base, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests.kernels.cuda.moe_cases import (
    BASE_ONLY,
    LORA_RANKS,
    PATHS,
    assert_near,
    create_adapter,
    create_lora_case,
    poisoned_memory,
)

from weft_kernels.cuda.expert_lora_expand import expand_
from weft_kernels.cuda.expert_lora_shrink import shrink
from weft_kernels.cuda.pair_groups import group_pairs
from weft_kernels.cuda.routing import route
from weft_kernels.popularity import assign_adapters


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture(params=PATHS)
def max_few_tokens(request: pytest.FixtureRequest) -> int:
    return PATHS[request.param]


@pytest.mark.parametrize(
    "touched",
    [
        [("gate", 0), ("gate", 3)],
        [("up", e) for e in range(5)],
        [("down", 1), ("down", 2)],
        [("gate", 4), ("up", 0), ("down", 4)],
    ],
)
def test_sites_that_an_adapter_does_not_touch_are_the_base(
    touched: list[tuple[str, int]],
    max_few_tokens: int,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    case = create_lora_case(generator, [0, 1] * 3, ranks=LORA_RANKS[:2])
    some = create_adapter(generator, case.weights, 9, touched)
    case = replace(case, adapters=[case.adapters[0], some])
    assert_near(case.run(device, max_few_tokens), case.twin())


def test_rows_without_an_adapter_get_the_base_bit_by_bit(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    rows = assign_adapters("uniform", 14, len(LORA_RANKS), seed=5)
    # no adapter, a slot that is empty, and slots that are none
    rows[::3] = [BASE_ONLY, len(LORA_RANKS), len(LORA_RANKS) + 5, -7, 900]
    case = create_lora_case(generator, rows)
    got, base = case.run(device, max_few_tokens), case.run_base(device, max_few_tokens)
    assert_near(got, case.twin())
    assert torch.equal(got[::3], base[::3])
    assert not torch.equal(got[1::3], base[1::3])


def test_adapters_that_touch_no_expert_give_the_base_bit_by_bit(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    case = replace(create_lora_case(generator, [0, 1] * 3), adapters=[{}, {}])
    base = case.run_base(device, max_few_tokens)
    assert torch.equal(case.run(device, max_few_tokens), base)


def test_null_experts_and_rows_that_are_no_tokens_have_no_adapters(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    rows = assign_adapters("uniform", 10, len(LORA_RANKS), seed=6)
    case = create_lora_case(generator, rows, num_null=3)
    num_tokens = torch.tensor([7], dtype=torch.int32, device=device)
    got = case.run(device, max_few_tokens, num_tokens=num_tokens)
    assert_near(got[:7], case.twin()[:7])
    assert got[7:].eq(0).all()


def test_a_row_that_is_not_finite_stays_alone(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    case = create_lora_case(generator, [0] * 8 + [1, 2, 2, BASE_ONLY])
    want = case.twin()
    case.x[3] = float("nan")
    got = case.run(device, max_few_tokens)
    assert got[3].isnan().all()
    keep = [row for row in range(12) if row != 3]
    assert_near(got[keep], want[keep])


def test_the_order_of_rows_changes_no_bit_of_them(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """All runs are short: each row's sums are its own."""
    case = create_lora_case(generator, assign_adapters("distinct", 6, len(LORA_RANKS), seed=7))
    got = case.run(device, max_few_tokens)
    assert torch.equal(got, case.run(device, max_few_tokens))
    flipped = replace(case, x=case.x.flip(0), rows=case.rows[::-1])
    torch.testing.assert_close(
        flipped.run(device, max_few_tokens).flip(0), got, rtol=1e-5, atol=1e-5
    )


def test_the_next_step_sees_other_slots_and_other_pages(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """Through the same tensors, as a captured graph does."""
    case = create_lora_case(generator, [0, 1, 2, 1])
    pages = case.pages(device)
    lora = case.lora(device, pages)
    assert_near(case.run(device, max_few_tokens, lora), case.twin())
    rows = [2, 2, BASE_ONLY, 0]
    lora.slots_T.copy_(torch.tensor(rows, dtype=torch.int32))
    moved = replace(case, rows=rows)
    assert_near(case.run(device, max_few_tokens, lora), moved.twin())
    first, last = pages.get(0), pages.get(2)
    pages.set(2, None)
    emptied = replace(moved, adapters=[*case.adapters[:2], {}])
    assert_near(case.run(device, max_few_tokens, lora), emptied.twin())
    pages.set(2, first)
    pages.set(0, last)
    swapped = replace(moved, adapters=case.adapters[::-1])
    assert_near(case.run(device, max_few_tokens, lora), swapped.twin())


def test_what_has_no_adapter_is_not_written(
    device: torch.device, generator: torch.Generator
) -> None:
    case = create_lora_case(generator, [0, BASE_ONLY, 2, BASE_ONLY, 0, 5])
    only_even = create_adapter(generator, case.weights, 8, [("gate", 0), ("gate", 2), ("gate", 4)])
    case = replace(case, adapters=[only_even, *case.adapters[1:]])
    lora = case.lora(device)
    x = case.x.to(device)
    _, experts = route(x @ case.weights.router_HE.to(device), 2, True)
    groups = group_pairs(experts, case.num_experts, lora.slots_T, lora.table.num_slots)
    h = shrink(x, groups, lora.table, (lora.gate_site,))
    y = torch.full((len(groups.pair_P), 16), 7.0, device=device)
    expand_(y, h, groups, lora.table, (lora.gate_site,))
    for place, pair in enumerate(groups.pair_P.tolist()):
        expert, slot = int(experts.flatten()[pair]), case.rows[pair // 2]
        adapter = case.adapters[slot] if 0 <= slot < len(case.adapters) else {}
        rank = len(adapter["gate", expert].a_RI) if ("gate", expert) in adapter else 0
        assert h[0, place, :rank].isfinite().all()
        assert h[0, place, rank:].isnan().all()
        assert y[place].eq(7.0).all().item() == (rank == 0)
