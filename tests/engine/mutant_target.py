"""An engine that mutants of adapters are given to, and what each of them must keep to."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from tests.adapters.mutants import Mutator
from tests.adapters.uploads import Upload

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

    def load(self, report: ValidationReport) -> Mapping[Site, SiteWeights] | None:
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
