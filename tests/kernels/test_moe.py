"""Routing and the mixture of experts against their twins, with and without expert adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from weft_kernels import reference
from weft_kernels.lora import LoraBatch, PackedSite, create_rank_group
from weft_kernels.moe import ExpertWeights, PackedExperts, moe, route
from weft_kernels.popularity import POPULARITIES, assign_adapters
from weft_kernels.reference import Lora

PROJECTIONS = ("gate", "up", "down")
RANKS = (4, 8, 24)
NUM_ADAPTERS = 6
BASE_ONLY = -1

Adapter = Mapping[tuple[str, int], Lora]


@dataclass(frozen=True)
class Case:
    """Experts, adapters by (projection, expert), and the adapter of each row."""

    x: torch.Tensor
    weights: ExpertWeights
    top_k: int
    renormalize: bool
    adapters: list[Adapter]
    rows: list[int]

    def twin(self) -> torch.Tensor:
        return reference.moe(
            self.x, self.weights.router_HE, self.weights.gate_up_EHF, self.weights.down_EFH,
            self.top_k, self.renormalize,
            [{} if a == BASE_ONLY else self.adapters[a] for a in self.rows],
        )  # fmt: skip

    def run(
        self, device: torch.device, *, reverse_groups: bool = False, is_joint: bool = False
    ) -> torch.Tensor:
        weights = ExpertWeights(
            self.weights.router_HE.to(device),
            self.weights.gate_up_EHF.to(device),
            self.weights.down_EFH.to(device),
        )
        slots = self.slots()
        sites = [self.pack(name, slots, device) for name in PROJECTIONS]
        if is_joint:
            join(*sites[:2])
        groups = []
        for rank, adapters in slots.items():
            pairs = [(r, adapters.index(a)) for r, a in enumerate(self.rows) if a in adapters]
            if pairs:
                rows, row_slots = zip(*pairs, strict=True)
                groups.append(create_rank_group(rank, len(adapters), rows, row_slots, device))
        batch = LoraBatch(tuple(groups[::-1] if reverse_groups else groups))
        x = self.x.to(device)
        packed = PackedExperts(sites, batch)
        return moe(x, weights, self.top_k, self.renormalize, packed).cpu()

    def slots(self) -> dict[int, list[int]]:
        """The adapters of each padded rank, by slot; one of several ranks is in several groups."""
        groups: dict[int, list[int]] = {}
        for i, adapter in enumerate(self.adapters):
            for rank in sorted({padded(lora) for lora in adapter.values()}):
                groups.setdefault(rank, []).append(i)
        return groups

    def pack(
        self, projection: str, slots: Mapping[int, list[int]], device: torch.device
    ) -> dict[int, PackedSite]:
        """Two slots beyond those in use hold NaN."""
        num_experts, hidden, width = self.weights.gate_up_EHF.shape
        num_in, num_out = (width // 2, hidden) if projection == "down" else (hidden, width // 2)
        packed = {}
        for rank, adapters in slots.items():
            lead = (len(adapters) + 2, num_experts)
            a, b = torch.zeros(*lead, rank, num_in), torch.zeros(*lead, rank, num_out)
            for tensor in (a, b):
                tensor[len(adapters) :] = float("nan")
            is_touched = False
            for slot, i in enumerate(adapters):
                for (name, expert), lora in self.adapters[i].items():
                    if name == projection and padded(lora) == rank:
                        a[slot, expert, : len(lora.a_RI)] = lora.a_RI
                        b[slot, expert, : len(lora.a_RI)] = lora.scale * lora.b_OR.T
                        is_touched = True
            if is_touched:
                packed[rank] = PackedSite(a.to(device), b.to(device))
        return packed


def join(gate: dict[int, PackedSite], up: dict[int, PackedSite]) -> None:
    """Put the A of sites that share an input side by side, where both are there."""
    for rank in gate.keys() & up.keys():
        joint = torch.cat((up[rank].a_SRI, gate[rank].a_SRI), dim=2)
        up[rank] = replace(up[rank], joint_SKI=joint)
        gate[rank] = replace(gate[rank], joint_SKI=joint, first=rank)
    for sites in (gate, up):
        for rank in sites.keys() - (gate.keys() & up.keys()):
            sites[rank] = replace(sites[rank], joint_SKI=sites[rank].a_SRI)


def padded(lora: Lora) -> int:
    return -(-len(lora.a_RI) // 8) * 8


def create_case(
    rows: Sequence[int],
    *,
    num_experts: int = 5,
    top_k: int = 2,
    hidden: int = 12,
    width: int = 8,
    renormalize: bool = True,
) -> Case:
    """Adapter i touches what i says: all, gate and up of all experts, down of the odd ones, ..."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul(shape[-1] ** -0.5)

    adapters: list[Adapter] = []
    for i in range(NUM_ADAPTERS):
        touched: dict[tuple[str, int], Lora] = {}
        for p, name in enumerate(PROJECTIONS):
            num_in, num_out = (width, hidden) if name == "down" else (hidden, width)
            # adapter 5 has another rank at every projection
            rank = RANKS[(i + (p if i == 5 else 0)) % len(RANKS)]
            for expert in range(num_experts):
                lora = Lora(normal(rank, num_in), normal(num_out, rank), 0.5 + i)
                if [True, name != "down", name == "down" and expert % 2 == 1, expert == 0,
                    name == "up", True][i]:  # fmt: skip
                    touched[name, expert] = lora
        adapters.append(touched)
    return Case(
        x=torch.randn(len(rows), hidden, generator=generator),
        weights=ExpertWeights(
            router_HE=normal(hidden, num_experts).mul(4),
            gate_up_EHF=normal(num_experts, hidden, 2 * width),
            down_EFH=normal(num_experts, width, hidden),
        ),
        top_k=top_k,
        renormalize=renormalize,
        adapters=adapters,
        rows=list(rows),
    )


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (7, 3), (133, 8), (4, 4)])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 133])
def test_routing_is_the_twins(
    num_rows: int,
    num_experts: int,
    top_k: int,
    renormalize: bool,
    device: torch.device,
    generator: torch.Generator,
) -> None:
    logits = torch.randn(num_rows, num_experts, generator=generator)
    weights, experts = route(logits.to(device), top_k, renormalize)
    want_weights, want_experts = reference.route(logits, top_k, renormalize)
    assert torch.equal(experts.cpu(), want_experts)
    torch.testing.assert_close(weights.cpu().double(), want_weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 7, 60])
def test_sites_with_their_a_side_by_side_are_the_twins(num_rows: int, device: torch.device) -> None:
    case = create_case(assign_adapters("uniform", num_rows, NUM_ADAPTERS, seed=4))
    assert_near(case.run(device, is_joint=True), case.twin())


def test_renormalized_weights_sum_to_one_and_raw_ones_do_not(
    device: torch.device, generator: torch.Generator
) -> None:
    logits = torch.randn(9, 8, generator=generator).to(device)
    total = route(logits, 2, renormalize=True)[0].sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert (route(logits, 2, renormalize=False)[0].sum(-1) < 0.999).all()


@pytest.mark.parametrize("num_rows", [1, 7, 133])
@pytest.mark.parametrize("popularity", POPULARITIES)
def test_expert_adapters_are_the_twins(
    popularity: str, num_rows: int, device: torch.device
) -> None:
    case = create_case(assign_adapters(popularity, num_rows, NUM_ADAPTERS, seed=0))
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("adapter", range(NUM_ADAPTERS))
def test_an_adapter_of_any_targets_is_the_twin(adapter: int, device: torch.device) -> None:
    case = create_case([adapter] * 9)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize(("hidden", "width"), [(7, 1), (1, 7), (33, 5), (64, 32)])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (7, 7), (33, 3)])
def test_ugly_sizes_are_the_twins(
    hidden: int, width: int, num_experts: int, top_k: int, device: torch.device
) -> None:
    case = create_case(
        assign_adapters("uniform", 13, NUM_ADAPTERS, seed=1),
        hidden=hidden, width=width, num_experts=num_experts, top_k=top_k, renormalize=False,
    )  # fmt: skip
    assert_near(case.run(device), case.twin())


def test_more_pairs_than_units_take_the_grouped_path_and_are_the_twins(
    device: torch.device,
) -> None:
    # 80 rows of one adapter on 2 of 5 experts: 160 pairs for 5 units per slot
    case = create_case([0] * 80)
    assert_near(case.run(device), case.twin())


@pytest.mark.parametrize("num_rows", [1, 7, 133])
def test_without_adapters_it_is_the_twin(num_rows: int, device: torch.device) -> None:
    case = create_case([BASE_ONLY] * num_rows)
    assert_near(case.run(device), case.twin())


def test_rows_without_an_adapter_get_the_base_bit_by_bit(device: torch.device) -> None:
    rows = assign_adapters("uniform", 30, NUM_ADAPTERS, seed=5)
    rows[::3] = [BASE_ONLY] * 10
    case = create_case(rows)
    got = case.run(device)
    assert_near(got, case.twin())
    base = replace(case, rows=[BASE_ONLY] * 30).run(device)
    assert torch.equal(got[::3], base[::3])
    assert not torch.equal(got, base)


def test_logits_may_come_from_elsewhere(device: torch.device) -> None:
    case = create_case([BASE_ONLY] * 20)
    other = replace(case.weights, router_HE=-case.weights.router_HE)
    want = replace(case, weights=other).twin()
    x, weights = case.x.to(device), ExpertWeights(
        *(w.to(device) for w in (case.weights.router_HE, case.weights.gate_up_EHF,
                                 case.weights.down_EFH))
    )  # fmt: skip
    logits = (case.x @ other.router_HE).to(device)
    got = moe(x, weights, case.top_k, case.renormalize, logits_TE=logits)
    assert_near(got, want)
    assert not torch.allclose(want, case.twin(), atol=1e-2)


def test_an_empty_batch_gives_no_rows(device: torch.device) -> None:
    assert create_case([]).run(device).shape == (0, 12)


def test_experts_without_a_token_change_nothing(device: torch.device) -> None:
    case = create_case(assign_adapters("uniform", 20, NUM_ADAPTERS, seed=6))
    want = case.twin()
    # one expert that no router score ever reaches, and holds NaN
    router = torch.cat((case.weights.router_HE, torch.zeros(12, 1)), dim=1)
    case.x[:, 0] = 50.0
    router[0, 5], router[0, :5] = -10.0, 0.0
    gate_up = torch.cat((case.weights.gate_up_EHF, torch.full((1, 12, 16), float("nan"))))
    down = torch.cat((case.weights.down_EFH, torch.full((1, 8, 12), float("nan"))))
    more = replace(case, weights=ExpertWeights(router, gate_up, down))
    fewer = replace(
        case, weights=ExpertWeights(router[:, :5], case.weights.gate_up_EHF, case.weights.down_EFH)
    )
    assert_near(more.run(device), fewer.twin())
    assert not torch.equal(fewer.twin(), want)


def test_a_row_that_is_not_finite_stays_alone(device: torch.device) -> None:
    case = create_case(assign_adapters("uniform", 12, NUM_ADAPTERS, seed=6))
    want = case.twin()
    case.x[3] = float("nan")
    got = case.run(device)
    assert got[3].isnan().all()
    keep = [row for row in range(12) if row != 3]
    assert_near(got[keep], want[keep])


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_the_same_batch_gives_the_same_bits(popularity: str, device: torch.device) -> None:
    case = create_case(assign_adapters(popularity, 64, NUM_ADAPTERS, seed=8))
    assert torch.equal(case.run(device), case.run(device))


def test_the_order_of_rows_and_groups_changes_nothing(device: torch.device) -> None:
    case = create_case(assign_adapters("zipf", 33, NUM_ADAPTERS, seed=7))
    got = case.run(device)
    assert torch.equal(got, case.run(device, reverse_groups=True))
    flipped = replace(case, x=case.x.flip(0), rows=case.rows[::-1])
    torch.testing.assert_close(flipped.run(device).flip(0), got, rtol=1e-5, atol=1e-5)
