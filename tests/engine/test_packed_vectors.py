"""Row scales and biases through the packed working copy: each row gets its own, and nothing of an
adapter that left."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.engine.pooled_adapters import BASE, DOWN0, Q0, RANKS, UP1, V0, VECTORS, PoolOfAdapters

from weft.engine.active import ActiveSet, PackedBatch
from weft_adapters.sites import Site
from weft_kernels.moe import Pairs

NAMES = [*RANKS, "only biases"]


class Adapters(PoolOfAdapters):
    """With the active set under test."""

    def __init__(self) -> None:
        super().__init__()
        self.active = ActiveSet(BASE, self.pool, torch.float32, max_adapters=3)
        self.load_all(RANKS, VECTORS)

    def use(self, *digests: str) -> None:
        self.active.update({digest: self.pooled[digest] for digest in digests})

    def assert_rows(self, rows: Sequence[str | None]) -> None:
        batch = self.active.create_batch(rows)
        self.assert_linears(batch, rows)
        self._assert_experts(batch, rows)

    def assert_used(self, rows: Sequence[str | None]) -> None:
        self.use(*sorted({digest for digest in rows if digest is not None}))
        self.assert_rows(rows)

    def _assert_experts(self, batch: PackedBatch, rows: Sequence[str | None]) -> None:
        """Every row goes through two experts of layer 1."""
        num_in, width = BASE.shape(UP1[0])
        num_pairs = 2 * len(rows)
        experts = torch.arange(num_pairs).view(-1, 2) % BASE.num_experts
        positions = torch.arange(num_pairs).flip(0).view(-1, 2)
        x, out = torch.randn(num_pairs, num_in), torch.randn(num_pairs, 2 * width)
        before = out.clone()
        own = batch.experts(1)
        if own is not None:
            pairs = Pairs(torch.empty(0), torch.empty(0), positions, experts)
            own.for_pairs(pairs, BASE.num_experts).add_gate_up_(out, x)
        for t, digest in enumerate(rows):
            for k in range(2):
                pair, site = int(positions[t, k]), Site(1, "up_proj", int(experts[t, k]))
                want = self.adapted(digest, site, x[pair], before[pair, width:].numpy())
                np.testing.assert_allclose(out[pair, width:], want, rtol=1e-4, atol=1e-4)
                assert torch.equal(out[pair, :width], before[pair, :width])


@pytest.mark.parametrize(
    "rows",
    [
        ["b"],
        ["only biases", None],
        ["b", "a", None, "only biases", "b"],
        ["c", "only biases", "b", "b", None, "c", "only biases"],
    ],
)
def test_each_row_gets_its_own(rows: list[str | None]) -> None:
    Adapters().assert_used(rows)


@pytest.mark.parametrize("seed", range(8))
def test_adapters_that_come_and_go_leave_nothing(seed: int) -> None:
    rng, adapters = random.Random(seed), Adapters()
    for _ in range(6):
        names = rng.sample(NAMES, rng.randint(1, 3))
        adapters.assert_used([rng.choice([None, *names]) for _ in range(5)])


def test_they_stay_packed_when_their_pages_are_others() -> None:
    adapters = Adapters()
    adapters.use("b", "only biases")
    for digest in ("b", "only biases"):
        adapters.pool.free(digest)
    biases = [site for site in BASE.sites() if site.projection != "gate_proj"]
    adapters.load("new", {Q0: 8, V0: 8, DOWN0: 8}, 9, ([Q0, V0], biases))
    adapters.use("b", "only biases", "new")
    adapters.assert_rows(["b", "new", "only biases", None])


def test_a_batch_without_any_does_nothing_for_them() -> None:
    adapters = Adapters()
    adapters.use("a", "b")
    assert adapters.active.create_batch(["a", None, "a"]).vectors is None
    assert adapters.active.create_batch(["a", "b"]).vectors is not None
