"""The packed working copy holds exactly the adapters in use, and nothing of those before."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.pooled_adapters import (
    BASE,
    DOWN0,
    Q0,
    UP1,
    V0,
    PoolOfAdapters,
    Ranks,
    create_weights,
)

from weft.engine.active import ActiveSet, PackedBatch
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import Site


class Adapters(PoolOfAdapters):
    """With the active set under test."""

    def __init__(self, ranks: Mapping[str, Ranks], budget_bytes: int = 2**20) -> None:
        super().__init__(budget_bytes=budget_bytes)
        self.active = ActiveSet(BASE, self.pool, torch.float32, max_adapters=3)
        self.load_all(ranks)

    def use(self, *digests: str) -> PackedBatch:
        """A batch of two rows for each adapter and one without."""
        self.active.update({digest: self.pooled[digest] for digest in digests})
        return self.active.create_batch([None, *digests, *digests])

    def assert_used(self, batch: PackedBatch, *digests: str) -> None:
        """Every row of the batch sees, at every site, its own adapter's weights or zeros."""
        rows: list[str | None] = [None, *digests, *digests]
        for site in BASE.sites():
            for row, digest in enumerate(rows):
                want = np.zeros(BASE.shape(site))
                if digest is not None and site in self.weights[digest]:
                    w = self.weights[digest][site]
                    want = w.scale * w.a.T @ w.b
                np.testing.assert_allclose(seen(batch, row, site), want, rtol=1e-4, atol=1e-4)


def seen(batch: PackedBatch, row: int, site: Site) -> np.ndarray[tuple[int, int], np.dtype[Any]]:
    """What row `row` adds to the base's weight `[in, out]` at a site."""
    total = torch.zeros(BASE.shape(site))
    for group in batch.lora.groups:
        packed = batch.sites.get((site.layer, site.projection), {}).get(group.rank)
        if packed is None or row not in group.rows_N.tolist():
            continue
        slot = int(group.slots_N[group.rows_N.tolist().index(row)])
        assert slot < group.num_slots <= len(packed.a_SRI)
        at = (slot,) if site.expert is None else (slot, site.expert)
        total += packed.a_SRI[at].T @ packed.b_SRO[at]
    return total.numpy()


def test_each_row_sees_its_own_adapter() -> None:
    adapters = Adapters({"a": {Q0: 4, V0: 8}, "b": {Q0: 8, UP1[1]: 6}, "c": {DOWN0: 16}})
    adapters.assert_used(adapters.use("a", "b", "c"), "a", "b", "c")


def test_a_batch_without_adapters_has_no_groups() -> None:
    adapters = Adapters({"a": {Q0: 4}})
    assert adapters.use().lora.groups == ()
    adapters.use("a")
    batch = adapters.active.create_batch([None, None])
    assert batch.lora.groups == ()


def test_an_adapter_that_touches_less_shows_nothing_of_the_one_before_it() -> None:
    everywhere = {site: 8 for site in BASE.sites()}
    adapters = Adapters({"a": everywhere, "b": {V0: 3}, "c": {UP1[0]: 8}})
    adapters.assert_used(adapters.use("a"), "a")
    adapters.assert_used(adapters.use("b"), "b")
    adapters.assert_used(adapters.use("c"), "c")


def test_a_slot_is_taken_over_while_others_stay() -> None:
    everywhere = {site: 8 for site in BASE.sites()}
    adapters = Adapters({"a": everywhere, "b": everywhere, "c": everywhere, "d": {Q0: 2}})
    adapters.use("a", "b", "c")
    batch = adapters.use("a", "d", "c")
    assert batch.lora.groups[0].num_slots == 3, "b's slot was to be used again"
    adapters.assert_used(batch, "a", "d", "c")


def test_an_adapter_of_several_ranks_has_a_slot_in_each_group() -> None:
    ranks = {Q0: 4, V0: 12, UP1[0]: 4, UP1[2]: 24}
    adapters = Adapters({"a": {Q0: 16}, "b": ranks, "c": {V0: 24}})
    batch = adapters.use("a", "b", "c")
    assert [group.rank for group in batch.lora.groups] == [8, 16, 24]
    adapters.assert_used(batch, "a", "b", "c")
    adapters.assert_used(adapters.use("b"), "b")


def test_more_adapters_than_slots_grow_the_packed_tensors() -> None:
    names = [f"a{i}" for i in range(19)]
    adapters = Adapters({name: {Q0: 8, UP1[1]: 8} for name in names})
    for num in (3, 4, 5, 19):
        adapters.assert_used(adapters.use(*names[:num]), *names[:num])


def test_slots_close_up_when_half_of_them_are_empty() -> None:
    names = [f"a{i}" for i in range(8)]
    adapters = Adapters({name: {Q0: 8, UP1[1]: 8, V0: 6} for name in [*names, "b"]})
    adapters.use(*names)
    batch = adapters.use("a0", "a3", "b")
    assert batch.lora.groups[0].num_slots == 3
    adapters.assert_used(batch, "a0", "a3", "b")


def test_an_unchanged_set_is_not_packed_again() -> None:
    adapters = Adapters({"a": {Q0: 8}, "b": {Q0: 8}})
    first = adapters.use("a", "b").sites[0, "q_proj"][8].a_SRI
    first[0, 0, 0] = 123.0
    again = adapters.use("b", "a").sites[0, "q_proj"][8].a_SRI
    assert again[0, 0, 0] == 123.0


def test_pages_in_pieces_are_packed_whole() -> None:
    # a pool so full that "b" lies in single pages
    adapters = Adapters({name: {Q0: 8} for name in ("x", "y", "z")}, budget_bytes=5 * 8 * 40 * 4)
    adapters.pool.free("y")
    weights = create_weights({Q0: 24}, seed=9)
    pooled = adapters.pool.try_load("b", weights)
    assert pooled is not None
    assert len(pooled.sites[Q0].runs) > 1
    adapters.weights["b"], adapters.pooled["b"] = weights, pooled
    adapters.assert_used(adapters.use("x", "b"), "x", "b")


def test_rows_in_the_order_of_the_key_lie_side_by_side() -> None:
    adapters = Adapters({"a": {Q0: 16}, "b": {Q0: 8}, "c": {Q0: 16}, "d": {Q0: 8}})
    adapters.use("a", "b", "c", "d")
    rows: list[str | None] = ["a", "b", None, "c", "d", "a", None, "b"]
    key = partial(adapters.active.order_key, num_rows=1)
    batch = adapters.active.create_batch(sorted(rows, key=key))
    for group in batch.lora.groups:
        [grid] = group.grids
        assert grid.span is not None
        assert group.slots_N.tolist() == sorted(group.slots_N.tolist())


SITES = [Q0, V0, DOWN0, *UP1]


@pytest.mark.parametrize("seed", range(25))
def test_any_sequence_of_sets_shows_each_adapter_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    shapes: list[dict[Site, int]] = [
        {site: rng.choice([4, 8, 12, 16]) for site in rng.sample(SITES, rng.randint(1, len(SITES)))}
        for _ in range(rng.randint(2, 9))
    ]
    uses = [set(rng.sample(range(9), rng.randint(0, 7))) for _ in range(rng.randint(1, 8))]
    adapters = Adapters({f"a{i}": ranks for i, ranks in enumerate(shapes)})
    for use in uses:
        names = [f"a{i}" for i in sorted(use) if i < len(shapes)]
        adapters.assert_used(adapters.use(*names), *names)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_is_in_the_packed_copy_and_not_in_the_pages(scale: float) -> None:
    adapters = Adapters({})
    weights = {Q0: SiteWeights(np.ones((8, 16), np.float32), np.ones((8, 24), np.float32), scale)}
    pooled = adapters.pool.try_load("a", weights)
    assert pooled is not None
    adapters.pooled["a"] = pooled
    site = adapters.use("a").sites[0, "q_proj"][8]
    assert (site.a_SRI[0] == 1).all()
    assert site.b_SRO[0] == pytest.approx(scale)
    assert all((page == 1).all() for page in adapters.pool.read("a", Q0))


def test_sites_that_share_an_input_are_packed_side_by_side() -> None:
    adapters = Adapters({"a": {V0: 8}, "b": {Q0: 8, V0: 8, DOWN0: 8}})
    adapters.use("a")
    sites = adapters.use("a", "b").sites
    q, v, down = (sites[0, name][8] for name in ("q_proj", "v_proj", "down_proj"))
    assert q.joint_SKI is v.joint_SKI
    assert down.joint_SKI is not q.joint_SKI
    assert {q.first, v.first} == {0, 8}


def test_a_batch_of_the_same_rows_is_made_once() -> None:
    adapters = Adapters({"a": {Q0: 8}, "b": {Q0: 8}})
    first = adapters.use("a")
    assert adapters.use("a") is first
    assert adapters.use("b") is not first
    adapters.assert_used(adapters.use("a"), "a")


def test_an_adapter_that_comes_back_is_not_packed_again() -> None:
    adapters = Adapters({"a": {Q0: 8}, "b": {Q0: 8}})
    adapters.use("a", "b").sites[0, "q_proj"][8].a_SRI[:, 0, 0] = 123.0
    adapters.use("a")
    adapters.use()
    again = adapters.use("a", "b").sites[0, "q_proj"][8].a_SRI
    assert again[:2, 0, 0].tolist() == [123.0, 123.0]
