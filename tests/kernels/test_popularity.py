"""What each popularity promises."""

from __future__ import annotations

from collections import Counter

import pytest

from weft_kernels.popularity import POPULARITIES, assign_adapters


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_a_seed_gives_the_same_rows_and_another_seed_others(popularity: str) -> None:
    rows = assign_adapters(popularity, 64, 16, seed=0)
    assert rows == assign_adapters(popularity, 64, 16, seed=0)
    assert len(rows) == 64
    assert set(rows) <= set(range(16))
    if popularity != "identical":
        assert rows != assign_adapters(popularity, 64, 16, seed=1)


def test_distinct_repeats_nothing_before_all_came_once() -> None:
    assert sorted(assign_adapters("distinct", 7, 7, seed=0)) == list(range(7))
    assert set(Counter(assign_adapters("distinct", 21, 7, seed=0)).values()) == {3}


def test_identical_uses_one() -> None:
    assert assign_adapters("identical", 5, 9, seed=3) == [0] * 5


@pytest.mark.parametrize(("popularity", "share"), [("uniform", 0.1), ("zipf", 0.34),
                                                   ("skewed", 0.34)])  # fmt: skip
def test_the_first_adapter_has_its_share(popularity: str, share: float) -> None:
    counts = Counter(assign_adapters(popularity, 20_000, 10, seed=0))
    assert counts[0] / 20_000 == pytest.approx(share, abs=0.02)


def test_an_unknown_popularity_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'punica'"):
        assign_adapters("punica", 1, 1, seed=0)
    with pytest.raises(ValueError, match="num_adapters"):
        assign_adapters("zipf", 1, 0, seed=0)
