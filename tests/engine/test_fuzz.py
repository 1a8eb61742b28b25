"""Mutants of every form of adapter: each is refused with reasons, or served.

No mutant may raise, take two seconds, or, in the tests that trace memory, have more of it allocated
than it is large plus 16 MiB; and what is served has to be, byte for byte, what the safetensors
library reads in the file.
"""

from __future__ import annotations

import copy
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.adapters.mutants import Mutator
from tests.adapters.uploads import Upload
from tests.engine.families import CASES, create_model
from tests.engine.forms import DENSE, FORMS, MOE, write
from tests.engine.mutant_target import MAX_RANK, Target

from weft_adapters.site_weights import num_bytes
from weft_adapters.store import FolderStore
from weft_adapters.validation import validate

if TYPE_CHECKING:
    from tests.bench import Bench


@pytest.fixture(scope="module")
def get_target(
    tmp_path_factory: pytest.TempPathFactory, create_bench: Callable[..., Bench]
) -> Iterator[Callable[[str], Target]]:
    made: list[Target] = []

    @cache
    def get(base: str) -> Target:
        root = tmp_path_factory.mktemp("fuzz")
        case = CASES[base]
        bench = create_bench(root, create_model(case), {}, **case.save)
        model = bench.oracle.model(None)
        originals = {}
        for seed, (name, form) in enumerate(FORMS.items()):
            if form.base == base:
                folder = root / f"form-{seed}"
                write(form, copy.deepcopy(model), folder, seed)
                originals[name] = read_form(folder)
        built, _ = bench.build(adapter_bytes=2 * 2**20, host_adapter_bytes=2**20)
        made.append(Target(built, FolderStore(root / "store"), root, Mutator(originals)))
        return made[-1]

    yield get
    for target in made:
        target.built.tiers.close()
    # to stop it while the threads of an engine allocate crashes this Python now and then
    tracemalloc.stop()


@pytest.fixture
def _memory_is_traced(get_target: Callable[[str], Target]) -> None:
    """To the end of this file: it makes all Python several times as slow."""
    tracemalloc.start()


def read_form(folder: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    config = json.loads((folder / "adapter_config.json").read_bytes())
    tensors = load_file(folder / "adapter_model.safetensors")
    return config, {name: tensor.float().numpy() for name, tensor in tensors.items()}


BASES = sorted({form.base for form in FORMS.values()})


def fuzz(target: Target, seed: int, numbers: range) -> None:
    for number in numbers:
        upload = target.mutator.mutate(random.Random(f"{seed}/{number}"))
        target.take(upload, f"mutant {number} of seed {seed}")
    target.serve()


@pytest.mark.slow
def test_a_slice_of_the_mutants_is_refused_or_served(get_target: Callable[[str], Target]) -> None:
    for base in (DENSE, MOE):
        target = get_target(base)
        fuzz(target, 0, range(180))
        assert target.num_served >= 20, "too few mutants are served for the test to say something"
        assert len(target.refusals) >= 12, sorted(target.refusals)


def assert_originals_are_served(target: Target) -> None:
    """Else the mutants would be refused for nothing. Also: what the report says of their sizes,
    but for whole matrices, whose rows may be the base's, is what they take."""
    for name, (config, tensors) in target.mutator.originals.items():
        upload = Upload(config, dict(tensors))
        path = target.folder / "original.safetensors"
        path.write_bytes(upload.file_bytes())
        report = validate(upload.config_bytes(), path, target.built.base, max_rank=MAX_RANK)
        assert report.digest is not None, (name, report.faults)
        target.store.put(report.digest, upload.config_bytes(), path)
        weights = target.load(report)
        assert weights is not None, name
        if not any(site.is_vocabulary for site in weights):
            assert report.tier_bytes["host"] == num_bytes(weights), name
            assert report.tier_bytes["device"] == target.built.pool.num_bytes_needed(weights), name


@pytest.mark.slow
def test_the_originals_are_served_and_as_large_as_reported(
    get_target: Callable[[str], Target],
) -> None:
    for base in (DENSE, MOE):
        assert_originals_are_served(get_target(base))


@pytest.mark.verify
def test_all_originals_are_served_and_as_large_as_reported(
    get_target: Callable[[str], Target],
) -> None:
    for base in BASES:
        assert_originals_are_served(get_target(base))


@pytest.mark.verify
@pytest.mark.usefixtures("_memory_is_traced")
@pytest.mark.parametrize("part", range(10))
def test_fifteen_thousand_mutants_are_refused_or_served(
    get_target: Callable[[str], Target], part: int
) -> None:
    share = 1500 // len(BASES) + 1
    for base in BASES:
        target = get_target(base)
        fuzz(target, 1, range(part * share, (part + 1) * share))
        assert target.num_served > share // 10
        assert len(target.refusals) > 15


def assert_any_mutant_is_refused_or_served(target: Target, num_examples: int) -> None:
    """Hypothesis chooses, looks for new paths, and shrinks what it finds."""

    @given(rng=st.randoms(use_true_random=False))
    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def run(rng: random.Random) -> None:
        target.take(target.mutator.mutate(rng), "a mutant")

    run()
    target.serve()


@pytest.mark.slow
@pytest.mark.usefixtures("_memory_is_traced")
def test_hypothesis_finds_no_mutant_that_is_neither(get_target: Callable[[str], Target]) -> None:
    assert_any_mutant_is_refused_or_served(get_target(MOE), 140)


@pytest.mark.verify
@pytest.mark.usefixtures("_memory_is_traced")
@pytest.mark.parametrize("base", BASES)
def test_hypothesis_finds_none_in_five_thousand(
    get_target: Callable[[str], Target], base: str
) -> None:
    assert_any_mutant_is_refused_or_served(get_target(base), 5000 // len(BASES) + 1)
