"""Adapters in slots of a page table: each row gets its own, and nothing of one that left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.pooled_adapters import BASE, DOWN0, Q0, UP1, V0, VECTORS, PoolOfAdapters
from tests.engine.pooled_adapters import RANKS as ALL_RANKS

from weft.engine.slot_adapters import (
    ATTENTION,
    EVERYTHING,
    MLP,
    NOTHING,
    SlotAdapters,
    SlotBatch,
)
from weft.engine.slot_adapters import VECTORS as VECTOR_SITES
from weft_adapters.pool import PooledAdapter
from weft_adapters.sites import Site
from weft_kernels.cuda.expert_lora_expand import expand_
from weft_kernels.cuda.expert_lora_shrink import shrink
from weft_kernels.cuda.pair_groups import group_pairs

NUM_SLOTS = 3


class Adapters(PoolOfAdapters):
    """With slots of a page table."""

    def __init__(self, device: torch.device, budget_bytes: int = 2**20) -> None:
        super().__init__(device, budget_bytes)
        self.slots = SlotAdapters(BASE, self.pool, NUM_SLOTS, max_rank=40)

    def hold(self, *digests: str) -> None:
        self.slots.update({digest: self.pooled[digest] for digest in digests})
        self.slots.integrity()

    def assert_used(self, rows: Sequence[str | None]) -> None:
        """Every row gets its own adapter's part at every site, or nothing."""
        self.hold(*{digest for digest in rows if digest is not None})
        batch = self.slots.create_batch(rows)
        self.assert_linears(batch, rows)
        self._assert_experts(batch, rows)

    def _assert_experts(self, batch: SlotBatch, rows: Sequence[str | None]) -> None:
        """Every row goes through two experts of layer 1."""
        lora = batch.experts(1)
        if lora is None:
            assert not any(site.expert is not None for d in rows if d for site in self.weights[d])
            return
        num_in, width = BASE.shape(UP1[0])
        experts = torch.arange(len(rows) * 2, dtype=torch.int32).view(-1, 2) % BASE.num_experts
        groups = group_pairs(experts.to(self.device), BASE.num_experts, lora.slots_T, NUM_SLOTS)
        x = torch.randn(len(rows), num_in, device=self.device)
        y = torch.zeros(len(rows) * 2, 2 * width, device=self.device)
        sites = (lora.gate_site, lora.up_site)
        expand_(y, shrink(x, groups, lora.table, sites), groups, lora.table, sites)
        for t, digest in enumerate(rows):
            for k in range(2):
                got = y[int(groups.place_P[2 * t + k])].cpu()
                for part, name in ((got[:width], "gate_proj"), (got[width:], "up_proj")):
                    site = Site(1, name, int(experts[t, k]))
                    want = self.adapted(digest, site, x[t])
                    np.testing.assert_allclose(part, want, rtol=1e-4, atol=1e-4)


RANKS = {**ALL_RANKS, "d": {Q0: 8, V0: 8}, "v": ALL_RANKS["b"]}
OWN_VECTORS = {"v": VECTORS["b"], "only biases": VECTORS["only biases"]}


@pytest.fixture
def adapters(device: torch.device) -> Adapters:
    adapters = Adapters(device)
    adapters.load_all(RANKS, OWN_VECTORS)
    return adapters


@pytest.mark.parametrize(
    "rows",
    [
        [None],
        ["a"],
        ["a", "a", None, "b"],
        ["b", "c", "b", None, "c", "a", "a"],
        [None, "d", None, "d"],
        ["v"],
        ["only biases", None, "a", "v", "v"],
    ],
)
def test_each_row_gets_its_own_adapter(adapters: Adapters, rows: list[str | None]) -> None:
    adapters.assert_used(rows)


def test_adapters_that_come_and_go_leave_nothing(adapters: Adapters) -> None:
    adapters.assert_used(["a", "b", "c"])
    adapters.assert_used(["d", "c", None])  # in a slot of one that left
    adapters.assert_used(["a"])
    adapters.assert_used(["c", "a", "b"])
    adapters.assert_used(["v", "only biases", "b"])
    adapters.assert_used(["c", "a", "only biases"])


def test_who_left_cannot_be_named(adapters: Adapters) -> None:
    adapters.hold("a", "b")
    adapters.hold("b")
    with pytest.raises(KeyError):
        adapters.slots.create_batch(["a"])


def test_who_comes_back_finds_its_column_unless_its_pages_went(
    adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters.hold("a", "b")
    slots = adapters.slots.slots(["a", "b"])
    adapters.hold("b")
    written: list[int] = []
    write = adapters.slots._write

    def note(slot: int, adapter: PooledAdapter | None) -> None:
        written.append(slot)
        write(slot, adapter)

    monkeypatch.setattr(adapters.slots, "_write", note)
    adapters.hold("b", "a")
    assert adapters.slots.slots(["a", "b"]) == slots
    assert written == []
    adapters.hold("b")
    adapters.free("a")
    adapters.load("new", {Q0: 8, V0: 8, DOWN0: 8}, seed=9)  # takes the pages of "a"
    adapters.load("a", RANKS["a"], seed=0)
    adapters.assert_used(["a", "b"])
    assert written
    adapters.assert_used(["new", "a", "b"])


def test_a_pool_that_is_full_again_and_again_has_entries_for_all(device: torch.device) -> None:
    page = 8 * sum(BASE.shape(UP1[0])) * 4  # the narrowest site
    adapters = Adapters(device, budget_bytes=8 * page)
    for turn in range(4):
        adapters.load(f"first {turn}", {UP1[0]: 32}, seed=turn)
        adapters.load(f"second {turn}", {UP1[0]: 32}, seed=turn + 9)
        adapters.assert_used([f"first {turn}", None, f"second {turn}"])
        adapters.hold()
        adapters.free(f"first {turn}")
        adapters.free(f"second {turn}")


def test_what_was_prepared_of_pages_that_went_is_not_used_again(adapters: Adapters) -> None:
    adapters.hold("a")
    stale = adapters.pooled["a"]
    adapters.free("a")
    adapters.load("new", {Q0: 8, V0: 8, DOWN0: 8}, seed=9)  # takes the pages of "a"
    adapters.load("a", RANKS["a"], seed=0)
    assert adapters.pooled["a"].prepared is not stale.prepared
    adapters.hold("a")
    (slot,), _ = adapters.slots.slots(["a"])
    assert adapters.slots._holders[slot] is adapters.pooled["a"]
    columns = [adapters.slots._pages.get(s) for s in range(NUM_SLOTS)]
    held = [column for column in columns if column is not None]
    assert len(held) == 1  # the stale column is gone, not only idle
    adapters.assert_used(["a", "new"])


def test_an_adapter_that_was_loaded_for_others_is_refused(adapters: Adapters) -> None:
    with pytest.raises(ValueError, match="not loaded for these slots"):
        adapters.slots.update({"a": replace(adapters.pooled["a"], prepared=None)})
    other = Adapters(adapters.device)
    other.load("a", RANKS["a"])
    with pytest.raises(ValueError, match="for another page table"):
        adapters.slots.update({"a": other.pooled["a"]})
    adapters.assert_used(["a", "b", "c"])


def test_more_adapters_than_slots_are_refused(adapters: Adapters) -> None:
    with pytest.raises(ValueError, match="4 adapters do not fit 3 slots"):
        adapters.hold("a", "b", "c", "d")


def test_a_batch_reaches_no_further_than_its_rows_adapters(adapters: Adapters) -> None:
    adapters.hold("a", "b", "d")
    for rows, reach in (
        (["a", None], MLP), (["d"], ATTENTION), ([None], NOTHING), (["d", "b"], EVERYTHING)
    ):  # fmt: skip
        batch = adapters.slots.create_batch(rows)
        assert batch.reach == reach
        assert batch._table.row_scales is batch._table.biases is None
    assert adapters.slots.create_batch(["d"]).experts(1) is None
    assert adapters.slots.create_batch([None]).segments is None
    adapters.hold("d", "v", "only biases")
    for rows in (["v", "d"], ["only biases"]):
        batch = adapters.slots.create_batch(rows)
        assert batch.reach == VECTOR_SITES
        assert batch._table.row_scales is not None


def test_rows_of_an_adapter_stand_together(adapters: Adapters) -> None:
    order = sorted([("b", 1), (None, 1), ("a", 40), ("b", 9)], key=lambda item: (
        adapters.slots.order_key(*item)))  # fmt: skip
    assert [digest for digest, _ in order] == [None, "a", "b", "b"]
