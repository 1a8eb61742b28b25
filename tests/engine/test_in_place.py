"""Adapters read from the pool's pages: each row gets its own, and nothing of one that left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tests.engine.pooled_adapters import BASE, DOWN0, Q0, RANKS, UP1, V0, VECTORS, PoolOfAdapters
from tests.engine.preparations import record_threads, run_in_turn

from weft.engine.in_place import InPlaceAdapters, InPlaceBatch
from weft_adapters.sites import INPUTS, Site
from weft_kernels.moe import Pairs
from weft_kernels.native.build import NativeBuildError, build
from weft_kernels.native.lora import Run, SlotParts

if TYPE_CHECKING:
    from tests.bench import Bench


@pytest.fixture(scope="module", autouse=True)
def _is_built() -> None:
    try:
        build()
    except NativeBuildError as error:
        pytest.skip(f"adapters in place are not tested: {error}")


class Adapters(PoolOfAdapters):
    """Read from the pool's pages."""

    def __init__(self) -> None:
        super().__init__()
        self.in_place = InPlaceAdapters(BASE, self.pool)

    def assert_used(self, rows: Sequence[str | None]) -> None:
        """Every row gets its own adapter's part at every site, or nothing."""
        self.in_place.update({d: self.pooled[d] for d in set(rows) if d is not None})
        batch = self.in_place.create_batch(rows)
        self.assert_linears(batch, rows)
        self._assert_experts(batch, rows)

    def _assert_experts(self, batch: InPlaceBatch, rows: Sequence[str | None]) -> None:
        num_in, width = BASE.shape(UP1[0])
        experts = torch.arange(len(rows) * 2).view(-1, 2) % BASE.num_experts
        positions = torch.arange(len(rows) * 2).flip(0).view(-1, 2)
        own, out = batch.experts(1), torch.zeros(len(rows) * 2, 2 * width)
        assert batch.experts(0) is None
        x = torch.randn(len(rows) * 2, num_in)
        if own is not None:
            pairs = Pairs(torch.empty(0), torch.empty(0), positions, experts)
            own.for_pairs(pairs, BASE.num_experts).add_gate_up_(out, x)
        for t, digest in enumerate(rows):
            for k in range(2):
                pair, expert = int(positions[t, k]), int(experts[t, k])
                want = self.adapted(digest, Site(1, "up_proj", expert), x[pair])
                np.testing.assert_allclose(out[pair, width:], want, rtol=1e-4, atol=1e-4)
                assert (out[pair, :width] == 0).all()


@pytest.fixture
def adapters() -> Adapters:
    adapters = Adapters()
    adapters.load_all(RANKS, VECTORS)
    return adapters


@pytest.mark.parametrize(
    "rows",
    [
        [None],
        ["a"],
        ["a", "a", None, "b"],
        ["b", "c", "b", None, "c", "a", "a"],
        [None, "c", None, "c"],
        ["only biases", None, "b", "a", "only biases"],
    ],
)
def test_each_row_gets_its_own_adapter(adapters: Adapters, rows: list[str | None]) -> None:
    adapters.assert_used(rows)


def test_adapters_that_come_and_go_leave_nothing(adapters: Adapters) -> None:
    adapters.assert_used(["a", "b"])
    adapters.assert_used(["b", "c", None])
    adapters.assert_used(["a"])
    adapters.assert_used([None, None])
    adapters.assert_used(["c", "a", "b"])


def test_an_adapter_loaded_again_into_other_pages_is_read_there(adapters: Adapters) -> None:
    adapters.assert_used(["a", "b"])
    adapters.free("a")
    adapters.load("new", {Q0: 8, V0: 8, DOWN0: 8}, seed=9)  # takes the pages of "a"
    adapters.load("a", RANKS["a"], seed=0)
    adapters.assert_used(["a", "b"])
    adapters.assert_used(["new", "a", "b"])


def test_the_same_rows_are_worked_out_once(adapters: Adapters) -> None:
    held = {"a": adapters.pooled["a"]}
    adapters.in_place.update(held)
    batch = adapters.in_place.create_batch(["a", None])
    adapters.in_place.update(held)
    assert adapters.in_place.create_batch(["a", None]) is batch
    assert adapters.in_place.create_batch([None, "a"]) is not batch


def test_rows_of_an_adapter_stand_together(adapters: Adapters) -> None:
    order = sorted([("b", 1), (None, 1), ("a", 40), ("b", 9)], key=lambda item: (
        adapters.in_place.order_key(*item)))  # fmt: skip
    assert [digest for digest, _ in order] == [None, "a", "b", "b"]


def test_addresses_are_those_of_the_pages_and_no_others(adapters: Adapters) -> None:
    """Against the sites one by one, in the order of their columns."""
    pooled = adapters.pooled["c"]
    wanted: list[list[Run]] = []
    for layer in range(BASE.num_layers):
        for names in INPUTS:
            is_dense = BASE.has(Site(layer, names[0]))
            experts = [None] if is_dense else list(range(BASE.num_experts))
            for expert in experts:
                sites = [Site(layer, name, expert) for name in names]
                if not BASE.has(sites[0]):
                    continue
                own, column = [], 0
                for site in sites:
                    width = BASE.shape(site)[1]
                    if site in pooled.sites:
                        scale = pooled.sites[site].scale
                        for run in pooled.sites[site].runs:
                            a = adapters.pool.memory.data_ptr() + 4 * run.offset
                            b = a + 4 * run.num_rows * BASE.shape(site)[0]
                            own.append(Run(a, b, run.num_rows, column, width, scale))
                    column += width
                wanted.append(own)
    adapters.in_place.update({"c": pooled})
    got, want = adapters.in_place._slots["c"].prepared.parts, SlotParts.of(wanted)
    assert len(got._parts) == len(pooled.sites)
    assert (got._parts == want._parts).all()
    assert (got._starts == want._starts).all()


def test_an_adapter_that_was_loaded_for_others_is_refused(adapters: Adapters) -> None:
    with pytest.raises(ValueError, match="not loaded for these kernels"):
        adapters.in_place.update({"a": replace(adapters.pooled["a"], prepared="something else")})


def test_tables_are_built_where_adapters_are_loaded(
    dense: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, digests = dense.build(kernels="native", max_running=1)
    threads = record_threads(monkeypatch, SlotParts, "__init__")
    loaded = [digests["small"], digests["mlp"]]
    run_in_turn(built, [*loaded, loaded[0]])
    built.tiers.close()
    assert threads == ["weft-adapter-loader"] * 2
