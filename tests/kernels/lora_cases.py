"""Random adapters packed by rank, with NaN wherever nothing may be read, and their twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from weft_kernels.linear import create_linear_weight
from weft_kernels.lora import (
    LoraBatch,
    PackedSite,
    RankGroup,
    adapted_linear,
    create_rank_group,
    create_terms,
)
from weft_kernels.reference import Lora
from weft_kernels.reference import adapted_linear as twin

RANKS = (4, 8, 16, 33, 64)
NUM_ADAPTERS = 10
BASE_ONLY = -1


@dataclass(frozen=True)
class Case:
    """A fused linear of some widths, adapters (None where one does not touch a slice), and the
    adapter of each row."""

    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor | None
    widths: tuple[int, ...]
    adapters: list[list[Lora | None]]
    rows: list[int]

    def twin(self) -> torch.Tensor:
        nothing: list[Lora | None] = [None] * len(self.widths)
        loras = [nothing if a == BASE_ONLY else self.adapters[a] for a in self.rows]
        return twin(self.x, self.w, self.bias, self.widths, loras)

    def run(
        self, device: torch.device, batch: LoraBatch | None = None, *, is_joint: bool = False
    ) -> torch.Tensor:
        sites = [
            {rank: to_device(site, device) for rank, site in by_rank.items()}
            for by_rank in self.pack()
        ]
        return adapted_linear(
            self.x.to(device),
            create_linear_weight(self.w.to(device)),
            None if self.bias is None else self.bias.to(device),
            create_terms(join(sites) if is_joint else sites, batch or self.batch(device)),
            self.widths,
        ).cpu()

    def rank(self, adapter: int) -> int:
        """Padded to whole pages."""
        ranks = {len(lora.a_RI) for lora in self.adapters[adapter] if lora is not None}
        assert len(ranks) == 1, "in these tests an adapter has one rank"
        return -(-ranks.pop() // 8) * 8

    def slots(self) -> dict[int, list[int]]:
        """The adapters of each rank group, by slot."""
        groups: dict[int, list[int]] = {}
        for adapter in range(len(self.adapters)):
            groups.setdefault(self.rank(adapter), []).append(adapter)
        return groups

    def pack(self) -> list[dict[int, PackedSite]]:
        """Slots beyond those in use, and B's padding beyond the true rank, hold NaN."""
        packed: list[dict[int, PackedSite]] = [{} for _ in self.widths]
        for rank, adapters in self.slots().items():
            for k, width in enumerate(self.widths):
                a = torch.zeros(len(adapters) + 2, rank, self.x.shape[1])
                b = torch.zeros(len(adapters) + 2, rank, width)
                for tensor in (a, b):
                    tensor[len(adapters) :] = float("nan")
                touched = [(s, self.adapters[i][k]) for s, i in enumerate(adapters)]
                for slot, lora in touched:
                    if lora is not None:
                        a[slot, : len(lora.a_RI)] = lora.a_RI
                        b[slot, : len(lora.a_RI)] = lora.scale * lora.b_OR.T
                if any(lora is not None for _, lora in touched):
                    packed[k][rank] = PackedSite(a, b)
        return packed

    def groups(self, device: torch.device) -> list[RankGroup]:
        groups = []
        for rank, adapters in self.slots().items():
            pairs = [(r, adapters.index(a)) for r, a in enumerate(self.rows) if a in adapters]
            if pairs:
                rows, slots = zip(*pairs, strict=True)
                groups.append(create_rank_group(rank, len(adapters), rows, slots, device))
        return groups

    def batch(self, device: torch.device) -> LoraBatch:
        return LoraBatch(tuple(self.groups(device)))


def to_device(site: PackedSite, device: torch.device) -> PackedSite:
    return PackedSite(site.a_SRI.to(device), site.b_SRO.to(device))


def join(sites: Sequence[dict[int, PackedSite]]) -> list[dict[int, PackedSite]]:
    """The same sites with their A side by side."""
    joined: list[dict[int, PackedSite]] = [{} for _ in sites]
    for rank in {rank for by_rank in sites for rank in by_rank}:
        parts = [(k, by_rank[rank]) for k, by_rank in enumerate(sites) if rank in by_rank]
        joint = torch.cat([site.a_SRI for _, site in parts], dim=1)
        for place, (k, site) in enumerate(parts):
            joined[k][rank] = replace(site, joint_SKI=joint, first=place * rank)
    return joined


def create_case(
    rows: Sequence[int],
    *,
    ranks: Sequence[int] = RANKS,
    num_adapters: int = NUM_ADAPTERS,
    num_in: int = 133,
    widths: tuple[int, ...] = (7, 1, 133),
    with_bias: bool = True,
) -> Case:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul(shape[-1] ** -0.5)

    adapters: list[list[Lora | None]] = []
    for i in range(num_adapters):
        rank = ranks[i % len(ranks)]
        adapters.append(
            [
                Lora(normal(rank, num_in), normal(width, rank), 0.5 + i) if k != i % 4 else None
                for k, width in enumerate(widths)
            ]
            if len(widths) > 1
            else [Lora(normal(rank, num_in), normal(widths[0], rank), 0.5 + i)]
        )
    return Case(
        x=torch.randn(len(rows), num_in, generator=generator),
        w=normal(num_in, sum(widths)),
        bias=normal(sum(widths)) if with_bias else None,
        widths=widths,
        adapters=adapters,
        rows=list(rows),
    )


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
