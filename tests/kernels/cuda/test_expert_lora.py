"""Adapters of experts against the twin, in the decode kernels and beside grouped_mm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from unittest import mock

import pytest
import torch
from tests.kernels.cuda.moe_cases import (
    BASE_ONLY,
    PATHS,
    PROJECTIONS,
    Case,
    assert_near,
    create_adapter,
    create_weights,
    poisoned_memory,
    to,
    twin,
)

from weft_adapters.fused import FusedFactors, load_fused
from weft_adapters.sites import BaseSpec
from weft_adapters.tensors import TensorFile
from weft_kernels.cuda.expert_lora_expand import expand_
from weft_kernels.cuda.expert_lora_shrink import shrink
from weft_kernels.cuda.pair_groups import FEW_PAIRS, TILE_ROWS, group_pairs
from weft_kernels.cuda.routing import route
from weft_kernels.popularity import POPULARITIES, assign_adapters
from weft_kernels.reference import Lora

RANKS = (4, 8, 13)


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture(params=PATHS)
def max_few_tokens(request: pytest.FixtureRequest) -> int:
    return PATHS[request.param]


def create_case(
    generator: torch.Generator,
    rows: Sequence[int],
    *,
    ranks: Sequence[int] = RANKS,
    top_k: int = 2,
    num_experts: int = 5,
    num_null: int = 0,
    hidden: int = 24,
    width: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Case:
    weights = create_weights(
        generator, num_experts=num_experts, num_null=num_null, hidden=hidden, width=width
    )
    weights = to(weights, torch.device("cpu"), dtype)
    adapters = [create_adapter(generator, weights, rank, dtype=dtype) for rank in ranks]
    x = torch.randn(len(rows), hidden, generator=generator).to(dtype)
    return Case(x, weights, top_k, adapters, list(rows))


@pytest.mark.parametrize(
    ("popularity", "num_rows"),
    [
        *((popularity, 7) for popularity in POPULARITIES),
        ("zipf", 0),
        ("zipf", 1),
        pytest.param("zipf", 20, marks=pytest.mark.verify),
    ],
)
def test_it_is_the_twin(
    popularity: str,
    num_rows: int,
    max_few_tokens: int,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    case = create_case(generator, assign_adapters(popularity, num_rows, len(RANKS), seed=0))
    got = case.run(device, max_few_tokens)
    assert_near(got, case.twin())
    assert num_rows == 0 or not torch.equal(got, case.run_base(device, max_few_tokens))


@pytest.mark.parametrize("popularity", ["distinct", "identical"])
def test_other_dtypes_are_the_twin(
    popularity: str,
    dtype: torch.dtype,
    max_few_tokens: int,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    rows = assign_adapters(popularity, 6, len(RANKS), seed=1)
    case = create_case(generator, rows, dtype=dtype)
    got = case.run(device, max_few_tokens)
    assert got.dtype == dtype
    assert_near(got, case.twin(), dtype)


def test_133_rows_of_zipf_are_the_twin(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    rows = assign_adapters("zipf", 133, 3, seed=2)
    case = create_case(generator, rows, top_k=1, num_experts=2, hidden=8, width=8)
    assert_near(case.run(device, max_few_tokens), case.twin())


@pytest.mark.parametrize("num_rows", [2, 5])
def test_ranks_from_4_to_256_are_the_twin(
    num_rows: int, max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """Two rows of an adapter are a GEMV each, five a tensor-core run of an expert's tile."""
    ranks = (4, 256)
    case = create_case(
        generator, [1] * num_rows + [0], ranks=ranks, top_k=1, num_experts=1, hidden=16, width=8
    )
    assert_near(case.run(device, max_few_tokens), case.twin())


@pytest.mark.parametrize(("hidden", "width"), [(1, 7), (7, 1), (133, 33)])
def test_ugly_sizes_are_the_twin(
    hidden: int,
    width: int,
    max_few_tokens: int,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    rows = assign_adapters("uniform", 7, 2, seed=3)
    case = create_case(generator, rows, ranks=RANKS[:2], hidden=hidden, width=width)
    assert_near(case.run(device, max_few_tokens), case.twin())


@pytest.mark.parametrize("top_k", [1, 8])
def test_any_number_of_experts_per_token_is_the_twin(
    top_k: int, max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    rows = assign_adapters("uniform", 5, 2, seed=4)
    case = create_case(generator, rows, ranks=RANKS[:2], top_k=top_k, num_experts=8)
    assert_near(case.run(device, max_few_tokens), case.twin())


@pytest.mark.parametrize("length", [FEW_PAIRS - 1, FEW_PAIRS, TILE_ROWS, TILE_ROWS + 1])
def test_runs_of_any_length_are_the_twin(
    length: int, max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """All on one expert: a run of slot 2 between shorter ones and rows without an adapter."""
    rows = [BASE_ONLY, 2, 0, *[2] * (length - 1), 1, BASE_ONLY, 1]
    case = create_case(generator, rows, top_k=1, num_experts=1)
    assert_near(case.run(device, max_few_tokens), case.twin())


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
    case = create_case(generator, [0, 1] * 3, ranks=RANKS[:2])
    some = create_adapter(generator, case.weights, 9, touched)
    case = replace(case, adapters=[case.adapters[0], some])
    assert_near(case.run(device, max_few_tokens), case.twin())


def test_rows_without_an_adapter_get_the_base_bit_by_bit(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    rows = assign_adapters("uniform", 14, len(RANKS), seed=5)
    # no adapter, a slot that is empty, and slots that are none
    rows[::3] = [BASE_ONLY, len(RANKS), len(RANKS) + 5, -7, 900]
    case = create_case(generator, rows)
    got, base = case.run(device, max_few_tokens), case.run_base(device, max_few_tokens)
    assert_near(got, case.twin())
    assert torch.equal(got[::3], base[::3])
    assert not torch.equal(got[1::3], base[1::3])


def test_adapters_that_touch_no_expert_give_the_base_bit_by_bit(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    case = replace(create_case(generator, [0, 1] * 3), adapters=[{}, {}])
    base = case.run_base(device, max_few_tokens)
    assert torch.equal(case.run(device, max_few_tokens), base)


def test_row_scales_and_biases_are_the_twin(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """DoRA's factor scales the base too; some sites have one vector, some the other, some none."""
    case = create_case(generator, [0] * 6 + [1, BASE_ONLY, 1], ranks=RANKS[:2])
    for adapter in case.adapters:
        for (name, expert), lora in adapter.items():
            scale, bias = (torch.randn(len(lora.b_OR), generator=generator) for _ in range(2))
            adapter[name, expert] = replace(
                lora,
                row_scale_O=scale if expert != 1 else None,
                bias_O=bias if expert != 2 else None,
            )
    assert_near(case.run(device, max_few_tokens), case.twin())


def test_null_experts_and_rows_that_are_no_tokens_have_no_adapters(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    rows = assign_adapters("uniform", 10, len(RANKS), seed=6)
    case = create_case(generator, rows, num_null=3)
    num_tokens = torch.tensor([7], dtype=torch.int32, device=device)
    got = case.run(device, max_few_tokens, num_tokens=num_tokens)
    assert_near(got[:7], case.twin()[:7])
    assert got[7:].eq(0).all()


def test_a_row_that_is_not_finite_stays_alone(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    case = create_case(generator, [0] * 8 + [1, 2, 2, BASE_ONLY])
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
    case = create_case(generator, assign_adapters("distinct", 6, len(RANKS), seed=7))
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
    case = create_case(generator, [0, 1, 2, 1])
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
    case = create_case(generator, [0, BASE_ONLY, 2, BASE_ONLY, 0, 5])
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


@pytest.mark.parametrize("swapped", [False, True])
def test_fused_parameters_are_sites_of_every_expert(
    swapped: bool, max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """PEFT's factors of whole parameters, cut as an upload is, against merged weights."""
    num_experts, rank, scale = 3, 5, 1.5
    case = create_case(generator, [0] * 6, ranks=(), num_experts=num_experts)
    hidden, width = case.weights.gate_up_EHF.shape[1], 16
    base = BaseSpec("", 1, hidden, hidden, hidden, width, width, num_experts, frozenset({0}))
    adapter: dict[tuple[str, int], Lora] = {}
    merged = {}
    for parameter, num_in, num_out, w in (
        ("gate_up_proj", hidden, 2 * width, case.weights.gate_up_EHF),
        ("down_proj", width, hidden, case.weights.down_EFH),
    ):
        wide_in, wide_out = (num_out, num_in) if swapped else (num_in, num_out)
        a = torch.randn(num_experts * rank, wide_in, generator=generator).mul(0.3)
        b = torch.randn(wide_out, rank * num_experts, generator=generator).mul(0.3)
        # delta[e] = B_e A_e, and its transpose where in and out are swapped
        a_Eri = a.view(num_experts, rank, wide_in)
        b_Eor = b.view(wide_out, rank, num_experts).permute(2, 0, 1)
        delta = scale * torch.bmm(b_Eor, a_Eri)
        merged[parameter] = w + (delta if swapped else delta.transpose(1, 2))
        file = mock.create_autospec(TensorFile, instance=True)
        file.read.side_effect = {"a": a.numpy(), "b": b.numpy()}.get
        factors = FusedFactors(0, parameter, "a", "b", rank, scale, swapped)
        for site, a_rI, b_rO in load_fused(factors, file, base):
            assert site.expert is not None
            name = site.projection.removesuffix("_proj")
            adapter[name, site.expert] = Lora(
                torch.from_numpy(a_rI), torch.from_numpy(b_rO).T, scale
            )
    assert set(adapter) == {(name, e) for name in PROJECTIONS for e in range(num_experts)}
    got = replace(case, adapters=[adapter]).run(device, max_few_tokens)
    weights = replace(
        case.weights, gate_up_EHF=merged["gate_up_proj"], down_EFH=merged["down_proj"]
    )
    assert_near(got, twin(case.x, weights, 2))


def test_what_does_not_fit_is_refused(device: torch.device, generator: torch.Generator) -> None:
    case = create_case(generator, [0, 1, 2])
    lora = case.lora(device)
    with pytest.raises(ValueError, match="there must be 3 slots, one for each row"):
        case.run(device, 8, replace(lora, slots_T=lora.slots_T[:2]))
    with pytest.raises(ValueError, match="slots must be int32"):
        case.run(device, 8, replace(lora, slots_T=lora.slots_T.long()))
    with pytest.raises(ValueError, match="the table has no 5 sites from 17 on"):
        case.run(device, 8, replace(lora, down_site=17))
    with pytest.raises(ValueError, match="as the pool"):
        replace(case, x=case.x.half()).run(device, 8, lora)
