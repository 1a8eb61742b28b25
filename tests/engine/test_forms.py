"""Each form of adapter in a batch mixed with the others, against the model that says what is right:
PEFT's, one request at a time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.engine.families import CASES, SIZES, create_model
from tests.engine.forms import DENSE, FORMS, MOE, load_reference, write
from torch import Tensor

from weft.engine.offline import AdapterRefusedError, load_adapters, register_folder, run_requests
from weft.messages import EngineRequest, RequestVocabulary, SamplingParams
from weft_adapters.store import FolderStore

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet
    from tests.conftest import Bench, NearTies

NUM_TOKENS = 64
VOCAB_SIZE = SIZES["vocab_size"]
NEAR_TIE = 1e-4


def each_form_on_each_kernels() -> list[ParameterSet]:
    """What is `-m verify`: torch's operators on families that differ by names alone."""
    params = []
    for name, form in FORMS.items():
        marks = () if form.base in (DENSE, MOE) else (pytest.mark.verify,)
        params.append(pytest.param(name, "native", id=f"{name}, native"))
        params.append(pytest.param(name, "torch", id=f"{name}, torch", marks=marks))
    return params


@dataclass
class Workshop:
    """A base, and the forms of it as files with their references."""

    bench: Bench
    model: Any
    folders: dict[str, Path]
    _references: dict[str | None, Any] = field(default_factory=dict)

    def logits(self, form: str | None, token_ids: list[int]) -> Tensor:
        """float32 `[len(token_ids), V]`; None is the base."""
        if form not in self._references:
            own = copy.deepcopy(self.model)
            self._references[form] = (
                own if form is None else load_reference(FORMS[form], own, self.folders[form])
            )
        with torch.inference_mode():
            out: Tensor = self._references[form](torch.tensor([token_ids])).logits[0]
        return out


@dataclass
class Answers:
    """What the engine said: by form, None the base; `refused` says why a form was."""

    prompts: Mapping[str | None, list[int]]
    logits: Mapping[str | None, Tensor]
    tokens: Mapping[str | None, list[int]]
    refused: Mapping[str, str]


@pytest.fixture(scope="session")
def get_workshop(
    tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]
) -> Callable[[str], Workshop]:
    @cache
    def get(base: str) -> Workshop:
        case = CASES[base]
        root = tmp_path_factory.mktemp("forms")
        bench = create_bench(root, create_model(case), {}, **case.save)
        model = bench.oracle.model(None)
        folders = {}
        for seed, (name, form) in enumerate(FORMS.items()):
            if form.base == base:
                folders[name] = root / f"form-{seed}"
                write(form, copy.deepcopy(model), folders[name], seed)
        return Workshop(bench, model, folders)

    return get


@pytest.fixture(scope="session")
def get_answers(get_workshop: Callable[[str], Workshop]) -> Callable[[str, str], Answers]:
    """(base, kernels) -> what one engine says to a batch of all its forms and the base; once."""

    @cache
    def get(base: str, kernels: str) -> Answers:
        workshop = get_workshop(base)
        built, _ = workshop.bench.build(kernels=kernels)
        store = FolderStore(workshop.bench.root / "store")
        digests: dict[str | None, str | None] = {None: None}
        refused = {}
        for name, folder in workshop.folders.items():
            try:
                digests[name] = register_folder(built, store, folder)
            except AdapterRefusedError as error:
                refused[name] = str(error)
        load_adapters(built, [digest for digest in digests.values() if digest is not None])
        rng = random.Random(0)
        prompts = {
            name: [
                *(rng.randrange(256) for _ in range(rng.randint(5, 30))),
                *added_tokens(name),
                3,
            ]
            for name in digests
        }
        sampling = SamplingParams(NUM_TOKENS, temperature=0, ignore_eos=True)
        requests = {
            name: EngineRequest(
                str(name),
                "tenant",
                tuple(prompt),
                sampling,
                digests[name],
                vocabulary=vocabulary_of(name),
            )
            for name, prompt in prompts.items()
        }
        completions = run_requests(built, requests.values())
        logits = workshop.bench.first_step_logits(built, list(requests.values()))
        built.tiers.close()
        return Answers(
            prompts=prompts,
            logits={name: logits[str(name)] for name in requests},
            tokens={name: completions[str(name)].token_ids for name in requests},
            refused=refused,
        )

    return get


def added_tokens(name: str | None) -> list[int]:
    num_added = 0 if name is None else FORMS[name].num_added
    return [VOCAB_SIZE + i for i in range(0, num_added, 3)]


def vocabulary_of(name: str | None) -> RequestVocabulary | None:
    num_added = 0 if name is None else FORMS[name].num_added
    return RequestVocabulary(VOCAB_SIZE + num_added) if num_added else None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), each_form_on_each_kernels())
def test_first_step_logits_are_pefts(
    name: str,
    kernels: str,
    get_workshop: Callable[[str], Workshop],
    get_answers: Callable[[str, str], Answers],
) -> None:
    base = FORMS[name].base
    answers = get_answers(base, kernels)
    assert name not in answers.refused, answers.refused[name]
    prompt, got = answers.prompts[name], answers.logits[name]
    want = get_workshop(base).logits(name, prompt)[-1]
    scale = max(1.0, float(want.abs().max()))
    assert float((got[: len(want)] - want).abs().max()) / scale < 1e-4
    known = [token for token in prompt if token < VOCAB_SIZE]
    without = get_workshop(base).logits(None, known)[-1]
    num_common = min(len(want), len(without))
    assert float((want[:num_common] - without[:num_common]).abs().max()) / scale > 1e-2, (
        "the adapter changes too little to be a test"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), each_form_on_each_kernels())
def test_greedy_tokens_in_a_mixed_batch_are_pefts(
    name: str,
    kernels: str,
    get_workshop: Callable[[str], Workshop],
    get_answers: Callable[[str, str], Answers],
    near_ties: NearTies,
) -> None:
    """Each token is the reference's best after those before it: one pass says all of them."""
    base = FORMS[name].base
    answers = get_answers(base, kernels)
    assert name not in answers.refused, answers.refused[name]
    prompt, tokens = answers.prompts[name], answers.tokens[name]
    assert len(tokens) == NUM_TOKENS
    logits = get_workshop(base).logits(name, [*prompt, *tokens])[len(prompt) - 1 : -1]
    best = logits.max(dim=1).values
    behind = best - logits[torch.arange(NUM_TOKENS), tokens]
    assert float(behind.max()) < NEAR_TIE, f"token {int(behind.argmax())} is not the reference's"
    near_ties.num_positions += NUM_TOKENS
    near_ties.num_ties += int((behind > 0).sum())


def test_each_base_of_the_forms_serves_several_in_a_batch() -> None:
    bases = [form.base for form in FORMS.values()]
    assert all(bases.count(base) > 1 for base in bases)
