"""Each form of adapter on Triton's kernels, in a batch mixed with the others.

Interpreted where there is no CUDA device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest
from tests.engine.cuda.conftest import IS_INTERPRETED
from tests.engine.forms import FORMS
from tests.engine.served_forms import Answers, Workshop, ask, create_workshop

if TYPE_CHECKING:
    from tests.bench import Bench

# interpreted, all of them take minutes
pytestmark = [pytest.mark.verify if IS_INTERPRETED else pytest.mark.gpu]

NUM_TOKENS = 2 if IS_INTERPRETED else 64


@pytest.fixture(scope="module")
def get_answers(
    tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]
) -> Callable[[str], tuple[Workshop, Answers]]:
    @cache
    def get(base: str) -> tuple[Workshop, Answers]:
        workshop = create_workshop(base, tmp_path_factory.mktemp("forms"), create_bench)
        device = "cpu" if IS_INTERPRETED else "cuda"
        return workshop, ask(workshop, NUM_TOKENS, kernels="triton", device=device)

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_answers_are_pefts(
    name: str, get_answers: Callable[[str], tuple[Workshop, Answers]]
) -> None:
    workshop, answers = get_answers(FORMS[name].base)
    workshop.assert_first_logits(name, answers)
    workshop.assert_greedy(name, answers)
