"""Patterns stand for exactly the names that they were made of."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from weft_adapters.patterned import boxes_of, patterns_of


def texts(*names: str) -> list[str]:
    return [str(pattern) for pattern in patterns_of(names)]


def test_names_of_all_layers_and_experts_are_one_pattern() -> None:
    names = [f"layers.{i}.experts.{j}.w1.lora_A" for i in range(4) for j in range(8)]
    assert texts(*names) == ["layers.{0-3}.experts.{0-7}.w1.lora_A"]


def test_a_gap_is_seen() -> None:
    names = [f"layers.{i}.q" for i in (0, 1, 2, 5, 7, 8)]
    assert texts(*names) == ["layers.{0-2,5,7-8}.q"]
    assert texts("layers.0.experts.1.q", "layers.1.experts.0.q", "layers.1.experts.1.q") == [
        "layers.0.experts.1.q",
        "layers.1.experts.{0-1}.q",
    ]


def test_numbers_inside_of_words_and_with_leading_zeros_are_text() -> None:
    assert texts("w1.a", "w2.a") == ["w1.a", "w2.a"]
    assert texts("x.01", "x.1", "x.2") == ["x.01", "x.{1-2}"]
    assert texts("", "7") == ["", "7"]
    assert len(texts(*(".".join("1" * 200 + str(i)) for i in range(3)))) == 3


@given(st.sets(st.tuples(*[st.integers(0, 3)] * 3)))
def test_boxes_cover_each_point_once(points: set[tuple[int, int, int]]) -> None:
    covered = [point for box in boxes_of(points) for point in product(*box)]
    assert len(covered) == len(set(covered))
    assert set(covered) == points
