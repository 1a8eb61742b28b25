"""The host tier holds at most its budget, and lets the least recently used go first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weft_adapters.host import HostTier, Weights
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import Site


def create_weights(num_bytes: int) -> Weights:
    a = np.zeros((1, num_bytes // 8), np.float32)
    return {Site(0, "q_proj"): SiteWeights(a, a.copy(), 1.0)}


def test_the_least_recently_used_goes_first() -> None:
    tier = HostTier(budget_bytes=240)
    assert tier.put("a", create_weights(80), 0.1) == []
    assert tier.put("b", create_weights(80), 0.1) == []
    assert tier.put("c", create_weights(80), 0.1) == []
    assert tier.use("a") is not None
    assert tier.put("d", create_weights(160), 0.1) == ["b", "c"]
    assert "a" in tier
    assert tier.use("b") is None
    assert tier.num_bytes == 240


def test_one_that_is_larger_than_the_budget_is_kept_alone() -> None:
    tier = HostTier(budget_bytes=100)
    tier.put("a", create_weights(80), 0.1)
    assert tier.put("large", create_weights(800), 0.1) == ["a"]
    assert tier.use("large") is not None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=40))
def test_the_budget_holds_after_any_sequence(steps: list[tuple[int, int]]) -> None:
    tier = HostTier(budget_bytes=400)
    for name, size in steps:
        digest = str(name)
        if tier.use(digest) is None:
            tier.put(digest, create_weights(8 * size), 0.1)
            assert tier.use(digest) is not None
        tier.integrity()
        assert tier.num_bytes <= 400
