"""An engine's answers to a batch of all forms of a base, and the models that say what is right."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tests.engine.families import CASES, SIZES, create_model
from tests.engine.forms import FORMS, load_reference, write
from tests.oracle import NEAR_TIE, behind_best
from torch import Tensor

from weft.engine.offline import AdapterRefusedError, load_adapters, register_folder, run_requests
from weft.messages import EngineRequest, RequestVocabulary, SamplingParams
from weft_adapters.store import FolderStore

if TYPE_CHECKING:
    from tests.bench import Bench

_VOCAB_SIZE = SIZES["vocab_size"]


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

    def assert_first_logits(self, form: str, answers: Answers) -> None:
        """Those of the first step are the reference's, and not the base's."""
        assert form not in answers.refused, answers.refused[form]
        prompt, got = answers.prompts[form], answers.logits[form]
        want = self.logits(form, prompt)[-1]
        scale = max(1.0, float(want.abs().max()))
        assert float((got[: len(want)] - want).abs().max()) / scale < 1e-4
        known = [token for token in prompt if token < _VOCAB_SIZE]
        without = self.logits(None, known)[-1]
        num_common = min(len(want), len(without))
        change = float((want[:num_common] - without[:num_common]).abs().max())
        assert change / scale > 1e-2, "the adapter changes too little to be a test"

    def assert_greedy(self, form: str, answers: Answers) -> tuple[int, int]:
        """Each token is the reference's best after those before it: one pass says all of them.
        How many there are, and how many near-ties."""
        assert form not in answers.refused, answers.refused[form]
        prompt, tokens = answers.prompts[form], answers.tokens[form]
        behind = behind_best(self.logits(form, [*prompt, *tokens]), tokens)
        worst = int(behind.argmax())
        assert float(behind[worst]) < NEAR_TIE, f"token {worst} is not the reference's"
        return len(tokens), int((behind > 0).sum())


@dataclass
class Answers:
    """What the engine said: by form, None the base; `refused` says why a form was."""

    prompts: Mapping[str | None, list[int]]
    logits: Mapping[str | None, Tensor]
    tokens: Mapping[str | None, list[int]]
    refused: Mapping[str, str]


def create_workshop(base: str, root: Path, create_bench: Callable[..., Bench]) -> Workshop:
    """With all forms of one of `families.CASES`, written below `root`."""
    case = CASES[base]
    bench = create_bench(root, create_model(case), {}, **case.save)
    model = bench.oracle.model(None)
    folders = {}
    for seed, (name, form) in enumerate(FORMS.items()):
        if form.base == base:
            folders[name] = root / f"form-{seed}"
            write(form, copy.deepcopy(model), folders[name], seed)
    return Workshop(bench, model, folders)


def ask(workshop: Workshop, num_tokens: int, **options: Any) -> Answers:
    """What one engine, built with `options`, says to a batch of all forms and the base."""
    built, _ = workshop.bench.build(**options)
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
        name: [*(rng.randrange(256) for _ in range(rng.randint(5, 30))), *_added_tokens(name), 3]
        for name in digests
    }
    sampling = SamplingParams(num_tokens, temperature=0, ignore_eos=True)
    requests = {
        name: EngineRequest(
            str(name), "tenant", tuple(prompt), sampling, digests[name],
            vocabulary=_vocabulary_of(name),
        )
        for name, prompt in prompts.items()
    }  # fmt: skip
    completions = run_requests(built, requests.values())
    logits = workshop.bench.first_step_logits(built, list(requests.values()))
    built.tiers.close()
    return Answers(
        prompts=prompts,
        logits={name: logits[str(name)].cpu() for name in requests},
        tokens={name: completions[str(name)].token_ids for name in requests},
        refused=refused,
    )


def _added_tokens(name: str | None) -> list[int]:
    num_added = 0 if name is None else FORMS[name].num_added
    return [_VOCAB_SIZE + i for i in range(0, num_added, 3)]


def _vocabulary_of(name: str | None) -> RequestVocabulary | None:
    num_added = 0 if name is None else FORMS[name].num_added
    return RequestVocabulary(_VOCAB_SIZE + num_added) if num_added else None
