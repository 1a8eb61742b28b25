"""Mutants of every form of adapter: each is refused with reasons, or served.

No mutant may raise, take two seconds, or, in the tests that trace memory, have more of it allocated
than it is large plus 16 MiB; and what is served has to be, byte for byte, what the safetensors
library reads in the file.
"""

from __future__ import annotations

import copy
import json
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.adapters.mutants import Mutator
from tests.adapters.uploads import Upload
from tests.engine.families import CASES, create_model
from tests.engine.forms import DENSE, FORMS, MOE, write

from weft.engine.build import BuiltEngine
from weft.engine.model.served_weights import ServedWeights
from weft.engine.offline import run_requests
from weft.messages import EngineRequest, SamplingParams
from weft_adapters.config import parse_config
from weft_adapters.faults import MAX_FAULTS, AdapterFaultError
from weft_adapters.format import resolve
from weft_adapters.header import read_header_path
from weft_adapters.site_weights import SiteWeights, num_bytes
from weft_adapters.sites import Site
from weft_adapters.source import DigestMismatchError, load_verified
from weft_adapters.store import FolderStore
from weft_adapters.validation import ValidationReport, validate

if TYPE_CHECKING:
    from tests.conftest import Bench

MAX_RANK = 64
MAX_SECONDS = 2.0
MAX_MORE_BYTES = 16 * 2**20
NUM_IN_BATCH = 16


@dataclass
class Target:
    """An engine on one base, the mutator of that base's forms, and what became of the mutants."""

    built: BuiltEngine
    store: FolderStore
    folder: Path
    mutator: Mutator
    waiting: dict[str, tuple[str, ValidationReport]] = field(default_factory=dict)
    num_served: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    base_weights: ServedWeights = field(init=False)

    def __post_init__(self) -> None:
        self.base_weights = ServedWeights(self.built.decoder.weights, self.built.base, None)

    def take(self, upload: Upload, what: str) -> None:
        """Have it judged; AssertionError says which mutant broke a rule."""
        config, file = upload.config_bytes(), upload.file_bytes()
        path = self.folder / "mutant.safetensors"
        path.write_bytes(file)
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        start_s = time.process_time()
        try:
            report = validate(config, path, self.built.base, max_rank=MAX_RANK)
            if report.digest is not None:
                self.store.put(report.digest, config, path)
                stored = self.store.open(report.digest)
                weights = load_verified(stored, report.digest, self.built.base, self.base_weights)
            taken_s = time.process_time() - start_s
            peak = tracemalloc.get_traced_memory()[1] - before
        except Exception as error:
            raise AssertionError(f"{what} raised {error!r}: {upload.changes}") from error
        assert taken_s < MAX_SECONDS, f"{what} took {taken_s} s: {upload.changes}"
        assert peak < len(config) + len(file) + MAX_MORE_BYTES, f"{what}: {peak}, {upload.changes}"
        self._assert_sound(report, upload, what)
        if report.digest is None:
            self.refusals.update({fault.code for fault in report.faults})
        elif weights is None:
            self.refusals.update(["at load"])
        else:
            self._assert_same_bytes(config, path, weights, what)
            self.waiting[report.digest] = (f"{what}: {upload.changes}", report)
        if len(self.waiting) == NUM_IN_BATCH:
            self.serve()

    def _load(self, report: ValidationReport) -> Mapping[Site, SiteWeights] | None:
        """As the tiers do; None where the base's own weights, which validation does not have, show
        that it cannot be served: a clear error, too."""
        assert report.digest is not None, "only accepted mutants are loaded"
        base_weights = self.built.tiers._arrivals._base_weights
        stored = self.store.open(report.digest)
        try:
            weights = load_verified(stored, report.digest, self.built.base, base_weights)
        except (AdapterFaultError, DigestMismatchError):
            raise
        except ValueError:
            return None
        assert num_bytes(weights) <= report.tier_bytes["host"]
        assert self.built.pool.num_bytes_needed(weights) <= report.tier_bytes["device"]
        return weights

    def _assert_sound(self, report: ValidationReport, upload: Upload, what: str) -> None:
        text = json.dumps(report.to_dict())
        assert len(text) < 2**20
        text.encode()
        assert report.ok == (not report.faults) == (report.digest is not None), what
        assert len(report.faults) <= MAX_FAULTS + 1
        assert all(fault.code and fault.message.isprintable() for fault in report.faults), what
        if report.tensors:
            counted = sum(row.num_tensors for row in report.tensors)
            assert report.num_rows_left_out or counted == report.num_tensors, what

    def _assert_same_bytes(
        self, config: bytes, path: Path, weights: Mapping[Site, SiteWeights], what: str
    ) -> None:
        read = {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
        plan = resolve(parse_config(config), read_header_path(path), self.built.base)
        for own in plan.plain:
            if own.rank == 0:
                assert own.site not in weights, what
                continue
            a = read[own.a_name] if own.e_name is None else read[own.a_name] * read[own.e_name]
            np.testing.assert_array_equal(weights[own.site].a, a, what)
            np.testing.assert_array_equal(weights[own.site].b, read[own.b_name].T, what)

    def serve(self) -> None:
        """The accepted ones in one batch: each answers, or fails alone and was warned of."""
        sampling = SamplingParams(2, temperature=0, ignore_eos=True)
        completions = run_requests(
            self.built,
            [
                EngineRequest(digest, "tenant", (5, 6, 7, 8, 9), sampling, digest)
                for digest in self.waiting
            ],
        )
        for digest, (what, report) in self.waiting.items():
            completion = completions[digest]
            if completion.error is None:
                assert len(completion.token_ids) == 2, what
            else:
                assert "finite" in completion.error, f"{what}: {completion.error}"
                assert any("outlier" in warning for warning in report.warnings), what
            self.store.delete(digest)
        self.num_served += len(self.waiting)
        self.waiting.clear()
        self.built.tiers.integrity()


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
        weights = target._load(report)
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
