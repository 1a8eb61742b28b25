"""Adapters of experts against the twin, in the decode kernels and beside grouped_mm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest
import torch
from tests.kernels.cuda.conftest import ROUNDED_DTYPES
from tests.kernels.cuda.moe_cases import (
    BASE_ONLY,
    LORA_RANKS,
    PATHS,
    PROJECTIONS,
    assert_near,
    create_lora_case,
    poisoned_memory,
    twin,
)

from weft_adapters.fused import FusedFactors, load_fused
from weft_adapters.sites import BaseSpec
from weft_adapters.tensors import TensorFile
from weft_kernels.cuda.pair_groups import FEW_PAIRS, TILE_ROWS
from weft_kernels.popularity import POPULARITIES, assign_adapters
from weft_kernels.reference import Lora


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture(params=PATHS)
def max_few_tokens(request: pytest.FixtureRequest) -> int:
    return PATHS[request.param]


@pytest.mark.parametrize(
    ("popularity", "num_rows"),
    [
        *((popularity, 7) for popularity in POPULARITIES if popularity != "uniform"),
        pytest.param("uniform", 7, marks=pytest.mark.verify),  # as those of ugly sizes
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
    case = create_lora_case(
        generator, assign_adapters(popularity, num_rows, len(LORA_RANKS), seed=0)
    )
    got = case.run(device, max_few_tokens)
    assert_near(got, case.twin())
    assert num_rows == 0 or not torch.equal(got, case.run_base(device, max_few_tokens))


@pytest.mark.parametrize("popularity", ["distinct", "identical"])
@pytest.mark.parametrize("dtype", ROUNDED_DTYPES)
def test_other_dtypes_are_the_twin(
    popularity: str,
    dtype: torch.dtype,
    max_few_tokens: int,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    rows = assign_adapters(popularity, 6, len(LORA_RANKS), seed=1)
    case = create_lora_case(generator, rows, dtype=dtype)
    got = case.run(device, max_few_tokens)
    assert got.dtype == dtype
    assert_near(got, case.twin(), dtype)


def test_133_rows_of_zipf_are_the_twin(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    rows = assign_adapters("zipf", 133, 3, seed=2)
    case = create_lora_case(generator, rows, top_k=1, num_experts=2, hidden=8, width=8)
    assert_near(case.run(device, max_few_tokens), case.twin())


@pytest.mark.parametrize("num_rows", [2, 5])
def test_ranks_from_4_to_256_are_the_twin(
    num_rows: int, max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """Two rows of an adapter are a GEMV each, five a tensor-core run of an expert's tile."""
    ranks = (4, 256)
    case = create_lora_case(
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
    case = create_lora_case(generator, rows, ranks=LORA_RANKS[:2], hidden=hidden, width=width)
    assert_near(case.run(device, max_few_tokens), case.twin())


@pytest.mark.parametrize("top_k", [1, 8])
def test_any_number_of_experts_per_token_is_the_twin(
    top_k: int, max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    rows = assign_adapters("uniform", 5, 2, seed=4)
    case = create_lora_case(generator, rows, ranks=LORA_RANKS[:2], top_k=top_k, num_experts=8)
    assert_near(case.run(device, max_few_tokens), case.twin())


@pytest.mark.parametrize("length", [FEW_PAIRS - 1, FEW_PAIRS, TILE_ROWS, TILE_ROWS + 1])
def test_runs_of_any_length_are_the_twin(
    length: int, max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """All on one expert: a run of slot 2 between shorter ones and rows without an adapter."""
    rows = [BASE_ONLY, 2, 0, *[2] * (length - 1), 1, BASE_ONLY, 1]
    case = create_lora_case(generator, rows, top_k=1, num_experts=1)
    assert_near(case.run(device, max_few_tokens), case.twin())


def test_row_scales_and_biases_are_the_twin(
    max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """DoRA's factor scales the base too; some sites have one vector, some the other, some none."""
    case = create_lora_case(generator, [0] * 6 + [1, BASE_ONLY, 1], ranks=LORA_RANKS[:2])
    for adapter in case.adapters:
        for (name, expert), lora in adapter.items():
            scale, bias = (torch.randn(len(lora.b_OR), generator=generator) for _ in range(2))
            adapter[name, expert] = replace(
                lora,
                row_scale_O=scale if expert != 1 else None,
                bias_O=bias if expert != 2 else None,
            )
    assert_near(case.run(device, max_few_tokens), case.twin())


@pytest.mark.parametrize("swapped", [False, True])
def test_fused_parameters_are_sites_of_every_expert(
    swapped: bool, max_few_tokens: int, device: torch.device, generator: torch.Generator
) -> None:
    """PEFT's factors of whole parameters, cut as an upload is, against merged weights."""
    num_experts, rank, scale = 3, 5, 1.5
    case = create_lora_case(generator, [0] * 6, ranks=(), num_experts=num_experts)
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
    case = create_lora_case(generator, [0, 1, 2])
    lora = case.lora(device)
    with pytest.raises(ValueError, match="there must be 3 slots, one for each row"):
        case.run(device, 8, replace(lora, slots_T=lora.slots_T[:2]))
    with pytest.raises(ValueError, match="slots must be int32"):
        case.run(device, 8, replace(lora, slots_T=lora.slots_T.long()))
    with pytest.raises(ValueError, match="the table has no 5 sites from 17 on"):
        case.run(device, 8, replace(lora, down_site=17))
    with pytest.raises(ValueError, match="as the pool"):
        replace(case, x=case.x.half()).run(device, 8, lora)
