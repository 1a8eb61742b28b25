"""Adapters read in place against the twin: popularities, ranks, sites, and what must not show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft_kernels import reference
from weft_kernels.memory import Arena
from weft_kernels.native.linear import create_native_linear
from weft_kernels.native.lora import LoraRows, Run, SiteVectors, SlotParts
from weft_kernels.popularity import POPULARITIES, assign_adapters
from weft_kernels.reference import Lora

BASE_ONLY = -1


@pytest.fixture(autouse=True, params=[1, 3], ids=["1 thread", "3 threads"])
def _num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(num_threads)


@dataclass
class Pool:
    """Adapters with a rank for each site of one input, 0 where it has no factors; pages in runs of
    at most `max_run` rank rows, with NaN between them. `vectors[i]`: what adapter i has besides, at
    every site: "m" a row scale, "b" a bias."""

    num_in: int
    widths: Sequence[int]
    ranks: Sequence[Sequence[int]]
    max_run: int = 1024
    num_before: int = 1
    vectors: Sequence[str] = ()
    loras: list[list[Lora | None]] = field(default_factory=list)
    slots: list[SlotParts] = field(default_factory=list)
    _memory: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        for number, ranks in enumerate(self.ranks):
            loras: list[Lora | None] = []
            runs: list[Run] = []
            own_vectors: list[SiteVectors] = []
            kinds = self.vectors[number] if self.vectors else ""
            column = 0
            for rank, width in zip(ranks, self.widths, strict=True):
                a = torch.randn(rank, self.num_in, generator=generator)
                b = torch.randn(width, rank, generator=generator)
                m, c = (
                    torch.randn(width, generator=generator) if kind in kinds else None
                    for kind in "mb"
                )  # fmt: skip
                loras.append(Lora(a, b, 0.5 + number, m, c) if rank or kinds else None)
                if rank:
                    runs += self._place(a, b.T, column, 0.5 + number)
                if kinds:
                    own_vectors.append(SiteVectors(self._keep(m), self._keep(c), column, width))
                column += width
            self.loras.append(loras)
            # inputs before the one under test: with nothing
            before: list[list[Any]] = [[] for _ in range(self.num_before)]
            vectors = [*before, own_vectors, []] if kinds else []
            self.slots.append(SlotParts.of([*before, runs, []], vectors))

    def _keep(self, vector: torch.Tensor | None) -> int:
        if vector is None:
            return 0
        self._memory.append(vector)
        return vector.data_ptr()

    def _place(self, a: torch.Tensor, b: torch.Tensor, column: int, scale: float) -> list[Run]:
        runs = []
        for first in range(0, len(a), self.max_run):
            parts = a[first : first + self.max_run], b[first : first + self.max_run]
            num_rows = -(-len(parts[0]) // 8) * 8
            sizes = [num_rows * part.shape[1] for part in parts]
            memory = torch.full((sum(sizes) + 64,), torch.nan)
            starts = (32, 32 + sizes[0])
            for part, start, size in zip(parts, starts, sizes, strict=True):
                memory[start : start + size] = 0  # the rows past the rank
                memory[start : start + part.numel()] = part.flatten()
            self._memory.append(memory)
            at_a, at_b = (memory.data_ptr() + 4 * start for start in starts)
            runs.append(Run(at_a, at_b, num_rows, column, b.shape[1], scale))
        return runs

    def assert_twin(self, rows: Sequence[int]) -> None:
        """`rows[t]` is row t's adapter."""
        generator = torch.Generator().manual_seed(2)
        num_out = sum(self.widths)
        x = torch.randn(len(rows), self.num_in, generator=generator)
        weight = torch.randn(self.num_in, num_out, generator=generator)
        bias = torch.randn(num_out, generator=generator)
        got = x @ weight + bias
        base = got.clone()
        lora_rows = LoraRows(self.slots, rows)
        lora_rows.add_(got, x, self.num_before, bias)
        nothing: list[Lora | None] = [None] * len(self.widths)
        loras = [nothing if row == BASE_ONLY else self.loras[row] for row in rows]
        want = reference.adapted_linear(x, weight, bias, self.widths, loras)
        scale = max(1.0, float(want.abs().max()) if len(rows) else 1.0)
        assert (got - want).abs().max() <= 1e-5 * scale if len(rows) else True
        for t, row in enumerate(rows):
            if row == BASE_ONLY:
                assert torch.equal(got[t], base[t])
        # with the base's linear in one go: the same, to the last bit
        linear = create_native_linear(weight, Arena())
        apart = linear.apply(x, bias)
        lora_rows.add_(apart, x, self.num_before, bias)
        together = lora_rows.linear(x, linear, bias, self.num_before)
        assert torch.equal(together, apart)


@pytest.mark.parametrize("popularity", POPULARITIES)
@pytest.mark.parametrize("num_rows", [1, 7, 133])
def test_every_popularity_is_the_twin(popularity: str, num_rows: int) -> None:
    pool = Pool(40, (24, 8), [(4, 8), (16, 0), (0, 24), (1, 1), (64, 40), (8, 8)])
    pool.assert_twin(assign_adapters(popularity, num_rows, 6, seed=3))


@pytest.mark.parametrize("rank", [1, 4, 8, 9, 16, 64, 256])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 9])
def test_every_rank_and_tile_is_the_twin(rank: int, num_rows: int) -> None:
    Pool(48, (33,), [(rank,)]).assert_twin([0] * num_rows)


@pytest.mark.parametrize("num_in", [1, 7, 16, 133])
@pytest.mark.parametrize("width", [1, 7, 16, 70, 133])
def test_odd_sizes_are_the_twin(num_in: int, width: int) -> None:
    Pool(num_in, (width, 3, width), [(8, 8, 8), (16, 4, 0)]).assert_twin([0, 1, 1, BASE_ONLY, 0])


def test_no_rows_and_rows_without_adapters_stay_as_they_are() -> None:
    pool = Pool(16, (8,), [(8,), (0,)])
    for rows in ([], [BASE_ONLY] * 5, [1, 1, BASE_ONLY], [BASE_ONLY, 0, BASE_ONLY, 1]):
        pool.assert_twin(rows)
    assert LoraRows(pool.slots, [BASE_ONLY]).is_empty


def test_pages_anywhere_are_the_twin() -> None:
    pool = Pool(24, (16, 40), [(64, 20), (8, 72), (16, 16)], max_run=8)
    pool.assert_twin([2, 0, 1, 0, 2, 2, BASE_ONLY, 1, 0, 0])


@pytest.mark.parametrize("num_rows", [1, 7, 133])
@pytest.mark.parametrize("width", [1, 16, 70])
def test_row_scales_and_biases_are_the_twin(num_rows: int, width: int) -> None:
    pool = Pool(
        24, (width, 33), [(8, 0), (0, 16), (0, 0), (4, 4), (0, 0)],
        vectors=["m", "mb", "b", "", "mb"],
    )  # fmt: skip
    pool.assert_twin([t % 6 - 1 for t in range(num_rows)])


def test_a_batch_without_row_scales_and_biases_does_nothing_for_them() -> None:
    pool = Pool(24, (16,), [(8,), (8,)], vectors=["", "mb"])
    assert not LoraRows(pool.slots, [0, BASE_ONLY])._has_vectors
    assert LoraRows(pool.slots, [0, 1])._has_vectors


@given(
    ranks=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=5),
    vectors=st.lists(st.sampled_from(["", "m", "b", "mb"]), min_size=5, max_size=5),
    picks=st.lists(st.integers(-1, 4), max_size=24),
    num_in=st.integers(1, 40),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    max_run=st.sampled_from([8, 16, 1024]),
)
@settings(max_examples=150, deadline=None)
def test_any_batch_is_the_twin(
    ranks: list[tuple[int, int]], vectors: list[str], picks: list[int], num_in: int,
    widths: tuple[int, int], max_run: int,
) -> None:  # fmt: skip
    pool = Pool(num_in, widths, ranks, max_run, vectors=vectors)
    pool.assert_twin([pick if pick < len(ranks) else BASE_ONLY for pick in picks])


def test_neither_threads_nor_neighbours_change_a_bit() -> None:
    pool = Pool(512, (256, 128), [(16, 8), (64, 64), (8, 32)], vectors=["", "mb", "m"])
    rows = [t % 4 - 1 for t in range(47)]
    x = torch.randn(47, 512, generator=torch.Generator().manual_seed(0))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = torch.zeros(47, 384)
            LoraRows(pool.slots, rows).add_(y, x, 1)
            results.append(y)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    for t, row in enumerate(rows):
        alone = torch.zeros(1, 384)
        LoraRows(pool.slots, [row]).add_(alone, x[t : t + 1], 1)
        assert torch.equal(alone[0], results[0][t])


def test_rows_may_be_strided_and_columns_beside_them_stay() -> None:
    pool = Pool(24, (16,), [(8,)])
    x, y = torch.randn(5, 60)[:, 30:54], torch.zeros(5, 40)
    LoraRows(pool.slots, [0] * 5).add_(y[:, 10:26], x, 1)
    lora = pool.loras[0][0]
    assert lora is not None
    want = torch.stack([lora.delta(row.double()) for row in x])
    torch.testing.assert_close(y[:, 10:26].double(), want, rtol=1e-4, atol=1e-4)
    assert (y[:, :10] == 0).all()
    assert (y[:, 26:] == 0).all()


def test_a_bad_value_of_one_row_stays_there() -> None:
    pool = Pool(24, (16,), [(8,)])
    x, y = torch.randn(6, 24), torch.zeros(6, 16)
    x[2, 3] = torch.nan
    LoraRows(pool.slots, [0] * 6).add_(y, x, 1)
    assert y.isfinite().all(1).tolist() == [True, True, False, True, True, True]


def test_pairs_use_the_adapter_of_their_token_at_their_expert() -> None:
    num_experts, top_k, num_in, width = 3, 2, 16, 24
    generator = torch.Generator().manual_seed(4)
    pools = [
        Pool(num_in, (width,), [(8,), (0,), (16,)], num_before=0, vectors=["", "", "mb"])
        for _ in range(num_experts)
    ]
    for seed, pool in enumerate(pools):
        for memory in pool._memory:
            memory.mul_(1 + seed)  # the same adapter differs from expert to expert
    slots = [_join([pool.slots[i] for pool in pools]) for i in range(3)]
    slot_of = [0, -1, 2, 2, 1, 0, 2]
    experts = torch.randint(num_experts, (len(slot_of), top_k), generator=generator)
    experts[:, 1] = (experts[:, 0] + 1) % num_experts
    positions = torch.randperm(len(slot_of) * top_k, generator=generator).view(-1, top_k)
    x = torch.randn(positions.numel(), num_in, generator=generator)
    y = torch.zeros(positions.numel(), width)
    rows = LoraRows(slots, slot_of)
    rows.for_pairs(experts, positions, num_experts).add_(y, x, 0)
    want = torch.zeros(positions.numel(), width, dtype=torch.float64)
    for t, slot in enumerate(slot_of):
        for k in range(top_k):
            pair, factor = int(positions[t, k]), 1 + int(experts[t, k])
            lora = pools[0].loras[slot][0] if slot >= 0 else None
            if lora is not None:
                want[pair] = factor**2 * lora.delta(x[pair].double())
                if lora.row_scale_O is not None and lora.bias_O is not None:
                    want[pair] = factor * (lora.row_scale_O * want[pair] + lora.bias_O)
    torch.testing.assert_close(y.double(), want, rtol=1e-4, atol=1e-4)


def _join(slots: Sequence[SlotParts]) -> SlotParts:
    """One slot with the first input of each, one after the other."""
    runs, vectors = [], []
    for slot in slots:
        own = slot._parts[: slot._starts[1]]
        runs.append([Run(*part.tolist()[:6]) for part in own])
        vectors.append([SiteVectors(*row) for row in slot._vectors.tolist()])
    return SlotParts.of(runs, vectors)


def test_what_it_cannot_read_is_refused() -> None:
    pool = Pool(16, (8,), [(8,)])
    rows = LoraRows(pool.slots, [0, 0])
    with pytest.raises(ValueError, match="float32 rows on the CPU"):
        rows.add_(torch.zeros(2, 8, dtype=torch.float64), torch.zeros(2, 16), 1)
    with pytest.raises(ValueError, match="float32 rows on the CPU"):
        rows.add_(torch.zeros(2, 8), torch.zeros(16, 2).T, 1)
    with pytest.raises(ValueError, match="7 rank rows, not a multiple of 8"):
        SlotParts.of([[Run(0, 0, 7, 0, 8, 1.0)]])


def test_the_scratch_suits_the_largest_input() -> None:
    pool = Pool(16, (8, 8), [(8, 16), (40, 0)])
    assert pool.slots[0].max_ranks == 24
    assert LoraRows(pool.slots, [0, 1, 1])._h.numel() == 3 * 40
    assert np.array_equal(LoraRows(pool.slots, [1, -1, 0]).slot_of_T, [1, -1, 0])
