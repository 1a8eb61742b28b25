"""Each form of adapter in a batch mixed with the others, against the model that says what is right:
PEFT's, one request at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest
from tests.engine.forms import DENSE, FORMS, MOE
from tests.engine.served_forms import Answers, Workshop, ask, create_workshop

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet
    from tests.bench import Bench
    from tests.oracle import NearTies

NUM_TOKENS = 64


def each_form_on_each_kernels() -> list[ParameterSet]:
    """What is `-m verify`: torch's operators on families that differ by names alone."""
    params = []
    for name, form in FORMS.items():
        marks = () if form.base in (DENSE, MOE) else (pytest.mark.verify,)
        params.append(pytest.param(name, "native", id=f"{name}, native"))
        params.append(pytest.param(name, "torch", id=f"{name}, torch", marks=marks))
    return params


@pytest.fixture(scope="session")
def get_workshop(
    tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]
) -> Callable[[str], Workshop]:
    return cache(lambda base: create_workshop(base, tmp_path_factory.mktemp("forms"), create_bench))


@pytest.fixture(scope="session")
def get_answers(get_workshop: Callable[[str], Workshop]) -> Callable[[str, str], Answers]:
    """(base, kernels) -> the answers of an engine, asked once."""
    return cache(lambda base, kernels: ask(get_workshop(base), NUM_TOKENS, kernels=kernels))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), each_form_on_each_kernels())
def test_first_step_logits_are_pefts(
    name: str,
    kernels: str,
    get_workshop: Callable[[str], Workshop],
    get_answers: Callable[[str, str], Answers],
) -> None:
    base = FORMS[name].base
    get_workshop(base).assert_first_logits(name, get_answers(base, kernels))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), each_form_on_each_kernels())
def test_greedy_tokens_in_a_mixed_batch_are_pefts(
    name: str,
    kernels: str,
    get_workshop: Callable[[str], Workshop],
    get_answers: Callable[[str, str], Answers],
    near_ties: NearTies,
) -> None:
    base = FORMS[name].base
    num, num_ties = get_workshop(base).assert_greedy(name, get_answers(base, kernels))
    assert num == NUM_TOKENS
    near_ties.num_positions += num
    near_ties.num_ties += num_ties


def test_each_base_of_the_forms_serves_several_in_a_batch() -> None:
    bases = [form.base for form in FORMS.values()]
    assert all(bases.count(base) > 1 for base in bases)
