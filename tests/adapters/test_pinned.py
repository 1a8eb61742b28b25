"""Factors move to other memory as they are."""

from __future__ import annotations

import numpy as np

from weft_adapters.pinned import pin
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import Site
from weft_adapters.tensors import Float32


def test_factors_move_into_few_pieces_and_shared_ones_stay_shared() -> None:
    random = np.random.default_rng(0)
    shared = random.standard_normal((4, 300_000)).astype(np.float32)
    sites = [Site(0, "gate_proj", expert) for expert in range(3)]
    weights = {
        site: SiteWeights(shared, random.standard_normal((4, 8)).astype(np.float32), 0.5)
        for site in sites
    }
    pieces: list[Float32] = []

    def allocate(num_elements: int) -> Float32:
        pieces.append(np.zeros(num_elements, np.float32))
        return pieces[-1]

    moved = pin(weights, allocate)
    assert list(moved) == sites
    assert len(pieces) == 2
    for site in sites:
        np.testing.assert_array_equal(moved[site].a, weights[site].a)
        np.testing.assert_array_equal(moved[site].b, weights[site].b)
        assert moved[site].scale == 0.5
        assert any(np.shares_memory(moved[site].b, piece) for piece in pieces)
        assert moved[site].a is moved[sites[0]].a
        assert not np.shares_memory(moved[site].a, shared)
