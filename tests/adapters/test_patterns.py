"""PEFT's patterns: the meaning of `re`, without its worst cases."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft_adapters.patterns import PatternSet

MODULES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 10, 11, 47)
    for module in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "mlp.gate_proj",
        "mlp.experts.gate_up_proj",
        "mlp.experts.1.up_proj",
        "mlp.experts.11.up_proj",
        "mlp.experts.111.up_proj",
    )
]
PATTERNS = [
    "q_proj",
    "q.proj",
    r".*\.gate_up_proj",
    "layers.1.mlp",
    "up_proj",
    "1.1.up_proj",
    "gate.up_proj",
    "experts.1.up_proj",
    r"^model\.layers\.(0|1)\..*",
    r"layers\.\d+\.self_attn\.[qk]_proj",
    r"model.layers.1[01].mlp.(gate|up)_proj$",
    "(.*.)+proj",
    "",
    "self_attn.(?:q|k)_proj",
    "^q_proj",
    "1.self_attn.q_proj",
    "model.layers.1.self_attn.q_proj",
    "(q|.)?_proj",
    "[^.]+_proj",
    r"layers\.\d{2}\.(?:.{3,9}){1,2}?proj",
    r".*?\bup_proj",
    r".*\b_proj",
    "a{0}gate_proj",
]


def as_peft(patterns: list[str], module: str) -> str | None:
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_pattern_means_what_it_means_to_peft(pattern: str) -> None:
    patterns = PatternSet([pattern])
    for module in MODULES:
        assert patterns.first_match(module) == as_peft([pattern], module)


@given(patterns=st.permutations(PATTERNS))
@settings(max_examples=20, deadline=None)
def test_the_first_that_matches_wins(patterns: list[str]) -> None:
    together = PatternSet(patterns)
    for module in MODULES:
        assert together.first_match(module) == as_peft(patterns, module)


def test_catastrophic_patterns_take_linear_time() -> None:
    patterns = PatternSet(["(.|.)" * 55 + "9", "((.*)*)*9", ".?" * 60 + "9"])
    start_s = time.perf_counter()
    for expert in range(500):
        module = f"model.layers.0.mlp.experts.{expert}.gate_proj"
        assert patterns.first_match(module) is None
    assert time.perf_counter() - start_s < 5


def test_many_plain_names_are_fast() -> None:
    ends = ["mlp.shared_expert.up_proj", "mlp.shared_expert_gate"]
    ends += [f"mlp.experts.{e}.up_proj" for e in range(60)]
    ends += [f"block_sparse_moe.experts.{e}.w{1 + e % 3}" for e in range(40)]
    names = [f"model.layers.{i}.{end}" for i in range(40) for end in ends]
    patterns = PatternSet(names)
    assert all(patterns.first_match(name) == name for name in names)


@pytest.mark.parametrize(
    "pattern",
    [
        "a{65}",
        "a{2,1}",
        "a{,3}",
        "a{",
        "(a{60}){60}{60}",
        "((((a{64}){64}){64}){64})",
        "^a|b",
        "(?=x)",
        "(a",
        "a)",
        "a**",
        r"\1",
        "(?P<x>a)",
        "[[a]",
        "[b-a]",
        "é",
        "a$b",
        "[]",
        "*",
    ]
    + ["(" * 30 + "a" + ")" * 30, "a" * 301, "\\"],
)
def test_anything_else_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        PatternSet([pattern])


@given(pattern=st.text(alphabet=r"aq_proj.*+?|()[]\^$dw01-", max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_refused_or_means_the_same(pattern: str) -> None:
    try:
        patterns = PatternSet([pattern])
    except ValueError:
        return
    for module in MODULES[:3]:
        assert patterns.first_match(module) == as_peft([pattern], module)
