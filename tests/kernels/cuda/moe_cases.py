"""Random experts and adapters in a pool that is as hostile as it may be, and their twin.

Whatever no kernel may use is NaN: gaps between pages, rows of tail pages past the true rank, other
sites of the table, and every tensor before it is written.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from weft_kernels import reference
from weft_kernels.cuda.expert_lora import ExpertLora
from weft_kernels.cuda.moe import moe
from weft_kernels.cuda.page_columns import SitePages
from weft_kernels.cuda.pages import PAGE_ROWS
from weft_kernels.cuda.pair_groups import TILE_ROWS, PairGroups
from weft_kernels.cuda.slot_pages import SlotPages, create_page_table
from weft_kernels.moe import ExpertWeights
from weft_kernels.reference import Lora

PROJECTIONS = ("gate", "up", "down")
# of the adapters of `create_lora_case`
LORA_RANKS = (4, 8, 13)
BASE_ONLY = -1
# sites of other layers before and behind: a wrong site meets no adapter, or the wrong one
FIRST_SITE = 3
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
# the decode kernels for any number of tokens, or grouped_mm
PATHS = {"few": 1000, "many": 0}

Adapter = Mapping[tuple[str, int], Lora]


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """What `torch.empty` gives is full of NaN, and of integers that are no index."""
    with mock.patch.dict(os.environ, CUBLAS_WORKSPACE_CONFIG=":4096:8"):
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.empty(3).isnan().all()
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).mul(shape[-1] ** -0.5)


def create_weights(
    generator: torch.Generator,
    *,
    num_experts: int = 5,
    num_null: int = 0,
    hidden: int = 24,
    width: int = 16,
) -> ExpertWeights:
    return ExpertWeights(
        router_HE=normal(generator, hidden, num_experts + num_null).mul(8),
        gate_up_EHF=normal(generator, num_experts, hidden, 2 * width),
        down_EFH=normal(generator, num_experts, width, hidden),
    )


def to(weights: ExpertWeights, device: torch.device, dtype: torch.dtype) -> ExpertWeights:
    tensors = (weights.router_HE, weights.gate_up_EHF, weights.down_EFH)
    return ExpertWeights(*(w.to(device, dtype) for w in tensors))


def twin(
    x: Tensor,
    weights: ExpertWeights,
    top_k: int,
    renormalize: bool = True,
    loras: Sequence[Adapter] | None = None,
) -> Tensor:
    return reference.moe(
        x, weights.router_HE, weights.gate_up_EHF, weights.down_EFH, top_k, renormalize,
        [{}] * len(x) if loras is None else loras,
    )  # fmt: skip


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Relative to the largest value, at least 1: half precision rounds sums at their largest."""
    largest = float(want.nan_to_num().abs().max()) if want.numel() else 1.0
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(
        got.cpu().double(), want, rtol=tolerance, atol=tolerance * max(1.0, largest)
    )


def create_adapter(
    generator: torch.Generator,
    weights: ExpertWeights,
    rank: int,
    touched: Sequence[tuple[str, int]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[tuple[str, int], Lora]:
    """At the given (projection, expert), all without; half of them of another rank."""
    num_experts, width, hidden = weights.down_EFH.shape
    if touched is None:
        touched = [(name, expert) for name in PROJECTIONS for expert in range(num_experts)]
    adapter = {}
    for name, expert in touched:
        num_in, num_out = (width, hidden) if name == "down" else (hidden, width)
        own = rank if expert % 2 == 0 else max(1, rank - 3)
        a, b = normal(generator, own, num_in), normal(generator, num_out, own)
        adapter[name, expert] = Lora(a.to(dtype), b.to(dtype), 0.5 + expert / 4)
    return adapter


@dataclass(frozen=True)
class Case:
    """Experts, the adapter of each slot, and the slot of each row."""

    x: Tensor
    weights: ExpertWeights
    top_k: int
    adapters: list[dict[tuple[str, int], Lora]]
    rows: list[int]
    renormalize: bool = True
    seed: int = 0

    @property
    def num_experts(self) -> int:
        return len(self.weights.down_EFH)

    def first_site(self, projection: str) -> int:
        return FIRST_SITE + PROJECTIONS.index(projection) * self.num_experts

    def twin(self) -> Tensor:
        loras = [self.adapters[s] if 0 <= s < len(self.adapters) else {} for s in self.rows]
        return twin(self.x, self.weights, self.top_k, self.renormalize, loras)

    def pages(self, device: torch.device) -> SlotPages:
        """Pages one by one in any order; two slots more than adapters are empty."""
        _, width, hidden = self.weights.down_EFH.shape
        shapes = [(hidden, width)] * (FIRST_SITE + 2 * self.num_experts)
        shapes += [(width, hidden)] * (self.num_experts + 2)
        pool = _Pool(random.Random(self.seed))
        slots = [
            {
                self.first_site(name) + expert: pool.add(lora)
                for (name, expert), lora in adapter.items()
            }
            for adapter in self.adapters
        ]
        memory = pool.memory().to(device, self.x.dtype)
        loras = [lora for adapter in self.adapters for lora in adapter.values()]
        return create_page_table(
            memory, shapes, [*slots, None, None],
            max_rank=max((len(lora.a_RI) for lora in loras), default=8),
            has_row_scales=any(lora.row_scale_O is not None for lora in loras),
            has_biases=any(lora.bias_O is not None for lora in loras),
        )  # fmt: skip

    def lora(self, device: torch.device, pages: SlotPages | None = None) -> ExpertLora:
        table = (pages or self.pages(device)).table
        slots_T = torch.tensor(self.rows, dtype=torch.int32, device=device)
        gate, up, down = (self.first_site(name) for name in PROJECTIONS)
        return ExpertLora(table, gate, up, down, slots_T)

    def run(
        self,
        device: torch.device,
        max_few_tokens: int,
        lora: ExpertLora | None = None,
        *,
        num_tokens: Tensor | None = None,
    ) -> Tensor:
        return moe(
            self.x.to(device), to(self.weights, device, self.x.dtype), self.top_k,
            self.renormalize, lora or self.lora(device), num_tokens=num_tokens,
            max_few_tokens=max_few_tokens,
        ).cpu()  # fmt: skip

    def run_base(self, device: torch.device, max_few_tokens: int) -> Tensor:
        weights = to(self.weights, device, self.x.dtype)
        return moe(
            self.x.to(device), weights, self.top_k, self.renormalize, max_few_tokens=max_few_tokens
        ).cpu()


def create_lora_case(
    generator: torch.Generator,
    rows: Sequence[int],
    *,
    ranks: Sequence[int] = LORA_RANKS,
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


class _Pool:
    """A flat pool whose pages lie in the order in which they were added, with gaps."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._parts: list[tuple[int, Tensor]] = []
        self._size = 0

    def add(self, lora: Lora) -> SitePages:
        """Every other site as one run, else page by page in random order."""
        rank = len(lora.a_RI)
        num_pages = -(-rank // PAGE_ROWS)
        whole = [(0, num_pages * PAGE_ROWS)]
        single = [(page * PAGE_ROWS, PAGE_ROWS) for page in range(num_pages)]
        cuts = whole if self._rng.random() < 0.5 else single
        runs = {}
        for first, num_rows in self._rng.sample(cuts, len(cuts)):
            rows = []
            for matrix in (lora.a_RI, lora.b_OR.T):
                part = torch.full((num_rows, matrix.shape[1]), float("nan"))
                own = matrix[first : first + num_rows]
                part[: len(own)] = own
                rows.append(part.flatten())
            runs[first] = (self._place(torch.cat(rows)), num_rows)
        vectors = [
            None if vector is None else self._place(vector)
            for vector in (lora.row_scale_O, lora.bias_O)
        ]
        return SitePages(rank, lora.scale, [runs[first] for first, _ in cuts], *vectors)

    def _place(self, part: Tensor) -> int:
        """Behind a gap, at a multiple of 8 elements as the pool has it."""
        offset = self._size + PAGE_ROWS * self._rng.randrange(1, 4)
        self._parts.append((offset, part))
        self._size = offset + -(-len(part) // PAGE_ROWS) * PAGE_ROWS
        return offset

    def memory(self) -> Tensor:
        memory = torch.full((self._size + PAGE_ROWS,), float("nan"))
        for offset, part in self._parts:
            memory[offset : offset + len(part)] = part
        return memory


def check_groups(
    groups: PairGroups, experts: list[list[int]], num_experts: int, slots: list[int], num_slots: int
) -> None:
    """Against Python's own stable sort, and every place in exactly one tile and run."""
    pairs = [
        (min(e, num_experts), s if 0 <= s < num_slots and e < num_experts else -1)
        for row, s in zip(experts, slots, strict=True)
        for e in row
    ]
    order = sorted(range(len(pairs)), key=lambda p: pairs[p])
    assert groups.top_k == len(experts[0])
    assert groups.pair_P.tolist() == order
    assert groups.slot_P.tolist() == [pairs[p][1] for p in order]
    assert [order[place] for place in groups.place_P.tolist()] == list(range(len(pairs)))
    ends = [sum(e <= last for e, _ in pairs) for last in range(num_experts)]
    assert groups.ends_E.tolist() == ends
    covered: list[int] = []
    for expert, first, end, _ in groups.tiles_L4.tolist():
        if expert >= 0:
            assert 1 <= end - first <= TILE_ROWS
            assert {pairs[p][0] for p in order[first:end]} == {expert}
            covered += range(first, end)
    assert sorted(covered) == list(range(ends[-1]))
    assert groups.runs_L4 is not None
    covered = []
    for expert, first, end, slot in groups.runs_L4.tolist():
        if expert >= 0:
            assert 1 <= end - first <= TILE_ROWS
            assert {pairs[p] for p in order[first:end]} == {(expert, slot)}
            covered += range(first, end)
    assert sorted(covered) == [i for i, p in enumerate(order) if pairs[p][1] >= 0]
