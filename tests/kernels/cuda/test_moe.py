"""Routing, grouping and the experts' GEMMs against their twins; adapters: test_expert_lora.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests.kernels.cuda.moe_cases import (
    PATHS,
    assert_near,
    check_groups,
    create_weights,
    poisoned_memory,
    to,
    twin,
)
from torch.nn import functional

from weft_kernels import reference
from weft_kernels.cuda.moe import moe
from weft_kernels.cuda.pair_groups import FEW_PAIRS, group_pairs
from weft_kernels.cuda.routing import route


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture(params=PATHS)
def max_few_tokens(request: pytest.FixtureRequest) -> int:
    return PATHS[request.param]


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    ("num_rows", "num_experts", "top_k"),
    [(0, 7, 2), (1, 1, 1), (7, 133, 8), (133, 7, 1)],
)
def test_routing_is_the_twins(
    num_rows: int,
    num_experts: int,
    top_k: int,
    renormalize: bool,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    logits = torch.randn(num_rows, num_experts, generator=generator).to(dtype)
    weights, experts = route(logits.to(device), top_k, renormalize)
    want_weights, want_experts = reference.route(logits, top_k, renormalize)
    assert torch.equal(experts.cpu().long(), want_experts)
    torch.testing.assert_close(weights.cpu().double(), want_weights, rtol=1e-5, atol=1e-6)


def test_of_equal_logits_the_lower_expert_comes_first(device: torch.device) -> None:
    logits = torch.tensor([[0.0] * 7, [1, 2, 2, 0, 2, 1, 1], [-9, -9, 5, 5, -9, 5, 5]])
    weights, experts = route(logits.to(device), 4, True)
    assert experts.tolist() == [[0, 1, 2, 3], [1, 2, 4, 0], [2, 3, 5, 6]]
    want_weights, want_experts = reference.route(logits, 4, True)
    assert torch.equal(experts.cpu().long(), want_experts)
    torch.testing.assert_close(weights.cpu().double(), want_weights)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("num_bad", [1, 6, 7])
def test_a_row_that_is_not_finite_has_experts_of_its_own(
    num_bad: int, bad: float, device: torch.device, generator: torch.Generator
) -> None:
    logits = torch.randn(3, 7, generator=generator)
    logits[1, :num_bad] = bad
    weights, experts = route(logits.to(device), 4, False)
    assert len(set(experts[1].tolist())) == 4
    assert all(0 <= e < 7 for e in experts[1].tolist())
    want = logits.softmax(-1).gather(1, experts.cpu().long())
    torch.testing.assert_close(weights.cpu(), want, equal_nan=True)


def test_rows_that_are_no_tokens_have_no_experts(
    device: torch.device, generator: torch.Generator
) -> None:
    logits = torch.randn(5, 7, generator=generator).to(device)
    num_tokens = torch.tensor([3], dtype=torch.int32, device=device)
    weights, experts = route(logits, 2, True, num_tokens)
    want_weights, want_experts = route(logits, 2, True)
    assert torch.equal(experts[:3], want_experts[:3])
    assert torch.equal(weights[:3], want_weights[:3])
    assert experts[3:].eq(7).all()
    assert weights[3:].eq(0).all()


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 133])
@pytest.mark.parametrize("few", [FEW_PAIRS - 1, FEW_PAIRS])
def test_tiles_end_where_experts_and_slots_do(
    few: int, num_rows: int, device: torch.device
) -> None:
    """Two experts, one of which has all tokens, and a slot of few tokens beside one of the rest."""
    experts = [[1, 4 * (row % 2)] for row in range(num_rows)]
    slots = [2 if row < few else 0 for row in range(num_rows)]
    groups = group_pairs(
        torch.tensor(experts, dtype=torch.int32, device=device), 4,
        torch.tensor(slots, dtype=torch.int32, device=device), 3,
    )  # fmt: skip
    check_groups(groups, experts, 4, slots, 3)
    assert groups.runs_L4 is not None
    of_two = [run for run in groups.runs_L4.tolist() if run[0] == 1 and run[3] == 2]
    assert len(of_two) == (1 if few == FEW_PAIRS and num_rows >= few else min(few, num_rows))


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (5, 2), (12, 8)])
@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_it_is_the_twin(
    num_rows: int,
    num_experts: int,
    top_k: int,
    dtype: torch.dtype,
    max_few_tokens: int,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    weights = to(create_weights(generator, num_experts=num_experts), device, dtype)
    x = torch.randn(num_rows, 24, generator=generator).to(dtype)
    got = moe(x.to(device), weights, top_k, False, max_few_tokens=max_few_tokens)
    assert got.dtype == dtype
    assert_near(got, twin(x, weights, top_k, False), dtype)


def test_logits_may_come_from_elsewhere(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    weights = create_weights(generator)
    x = torch.randn(7, 24, generator=generator)
    other = replace(weights, router_HE=-weights.router_HE)
    logits = (x @ other.router_HE).to(device)
    on_device = to(weights, device, x.dtype)
    got = moe(x.to(device), on_device, 2, True, logits_TE=logits, max_few_tokens=max_few_tokens)
    assert_near(got, twin(x, other, 2))
    with pytest.raises(ValueError, match="logits of 5 experts a row"):
        moe(x.to(device), on_device, 2, True, logits_TE=logits[:6])


def test_many_tiles_of_many_experts_are_the_twin(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    weights = create_weights(generator, num_experts=3)
    x = torch.randn(70, 24, generator=generator)
    got = moe(x.to(device), to(weights, device, x.dtype), 2, True, max_few_tokens=max_few_tokens)
    assert_near(got, twin(x, weights, 2))


@pytest.mark.parametrize(("hidden", "width"), [(1, 7), (7, 1), (133, 33), (200, 133)])
def test_ugly_sizes_are_the_twin(
    hidden: int,
    width: int,
    max_few_tokens: int,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    weights = create_weights(generator, hidden=hidden, width=width)
    x = torch.randn(7, hidden, generator=generator)
    got = moe(x.to(device), to(weights, device, x.dtype), 2, True, max_few_tokens=max_few_tokens)
    assert_near(got, twin(x, weights, 2))


def test_rows_may_be_strided(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    weights = to(create_weights(generator), device, torch.float32)
    x = torch.randn(7, 40, generator=generator).to(device)[:, 8:32]
    got = moe(x, weights, 2, True, max_few_tokens=max_few_tokens)
    assert_near(got, twin(x, weights, 2))


def test_all_tokens_on_one_expert_leave_the_others_unread(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    weights = create_weights(generator)
    x = torch.randn(40, 24, generator=generator)
    x[:, 0] = 50.0
    weights.router_HE[0] = torch.tensor([-9.0, -9.0, -9.0, 9.0, -9.0])
    for expert in (0, 1, 2, 4):
        weights.gate_up_EHF[expert] = float("nan")
        weights.down_EFH[expert] = float("nan")
    got = moe(x.to(device), to(weights, device, x.dtype), 1, False, max_few_tokens=max_few_tokens)
    assert_near(got, twin(x, weights, 1, False))


def test_null_experts_take_a_place_and_a_weight_and_run_nothing(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    weights = create_weights(generator, num_null=4)
    x = torch.randn(33, 24, generator=generator)
    experts = reference.route(x @ weights.router_HE, 2, True)[1]
    num_null = (experts >= 5).sum(1)
    assert {int(n) for n in num_null} == {0, 1, 2}
    got = moe(x.to(device), to(weights, device, x.dtype), 2, True, max_few_tokens=max_few_tokens)
    assert_near(got, twin(x, weights, 2))
    assert got[num_null.to(device) == 2].eq(0).all()


def test_rows_that_are_no_tokens_come_out_as_zeros(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    weights = to(create_weights(generator), device, torch.float32)
    x = torch.randn(20, 24, generator=generator).to(device)
    x[9:] = float("nan")
    num_tokens = torch.tensor([9], dtype=torch.int32, device=device)
    got = moe(x, weights, 2, True, num_tokens=num_tokens, max_few_tokens=max_few_tokens)
    assert_near(got[:9], twin(x[:9], weights, 2))
    assert got[9:].eq(0).all()


def test_a_row_that_is_not_finite_stays_alone(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    weights = create_weights(generator)
    x = torch.randn(20, 24, generator=generator)
    want = twin(x, weights, 2)
    x[3] = float("nan")
    got = moe(
        x.to(device), to(weights, device, x.dtype), 2, True, max_few_tokens=max_few_tokens
    ).cpu()
    assert got[3].isnan().all()
    keep = [row for row in range(20) if row != 3]
    assert_near(got[keep], want[keep])


def test_the_same_batch_gives_the_same_bits(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    weights = to(create_weights(generator), device, torch.float32)
    x = torch.randn(20, 24, generator=generator).to(device)
    first, again = (moe(x, weights, 2, True, max_few_tokens=max_few_tokens) for _ in range(2))
    assert torch.equal(first, again)


def test_without_grouped_mm_many_tokens_are_refused(
    device: torch.device, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = to(create_weights(generator), device, torch.float32)
    x = torch.randn(3, 24, generator=generator).to(device)
    monkeypatch.delattr(functional, "grouped_mm")
    assert_near(moe(x, weights, 2, True), twin(x, weights, 2))
    with pytest.raises(RuntimeError, match="grouped_mm"):
        moe(x, weights, 2, True, max_few_tokens=2)


def test_what_does_not_fit_is_refused(device: torch.device, generator: torch.Generator) -> None:
    weights = to(create_weights(generator), device, torch.float32)
    x = torch.randn(3, 24, generator=generator).to(device)
    with pytest.raises(ValueError, match="top_k must be 1 to 5"):
        moe(x, weights, 6, True)
    with pytest.raises(ValueError, match=r"x must be \[T, 24\]"):
        moe(x[:, :8], weights, 2, True)
    with pytest.raises(ValueError, match="contiguous torch.float16, as x"):
        moe(x.half(), weights, 2, True)
    with pytest.raises(ValueError, match="the router must be"):
        moe(x, replace(weights, router_HE=weights.router_HE[:, :4]), 2, True)
    with pytest.raises(ValueError, match="experts must be contiguous int32"):
        group_pairs(torch.zeros(3, 2, dtype=torch.int64, device=device), 5)
