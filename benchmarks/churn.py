"""The right weights under churn: each request's tokens against an isolated run of its version.

Adapters are loaded, evicted (the pool is smaller than what is in use), replaced under their names
and deleted while requests run, some of which are aborted or preempted. A request keeps the version
that its name pointed at when it came. Prompts share prefixes, and all versions are asked the same
prompts, so a block or page of another version would show. Every invariant is checked after each
step. What was generated is then compared with an engine that runs nothing else; tokens may part
only where transformers + PEFT, the oracle, has two nearly equal logits or router scores.

    python -m benchmarks.churn [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.isolated import Isolated, Verdicts
from benchmarks.models import (
    create_tiny_base,
    quiet_libraries,
    save_peft_adapter,
    tiny_targets,
)
from benchmarks.population import Population

from weft.engine.build import build_engine, warm_up
from weft.engine.config import MIB, EngineConfig
from weft.messages import EngineOutput, EngineRequest, SamplingParams
from weft_adapters.store import FolderStore

NAME = "churn"
NUM_NAMES = 12
NUM_PROMPTS = 4
MAX_IN_FLIGHT = 20
MAX_TOKENS = 16
# the chance, with each request, that a name gets a new version, is deleted, or a request aborted
REPLACE, DELETE, ABORT = 0.06, 0.04, 0.05
BASE_SHARE = 0.1  # of requests, for the base itself
POOL_BYTES = {"dense": 1 * MIB, "moe": 2 * MIB}
NUM_BLOCKS = 18


@dataclass(slots=True)
class Generated:
    """What one request got: a prefix of the answer where it was aborted."""

    digest: str | None
    prompt: tuple[int, ...]
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    num_cached_tokens: int = 0


def create_prompts(rng: random.Random) -> list[tuple[int, ...]]:
    """All start with the same two blocks, and in pairs with the same three."""
    shared = [rng.randrange(256) for _ in range(32)]
    pairs = [[rng.randrange(256) for _ in range(16)] for _ in range(NUM_PROMPTS // 2)]
    ends = [[rng.randrange(256) for _ in range(rng.randint(1, 20))] for _ in range(NUM_PROMPTS)]
    return [tuple(shared + pairs[i // 2] + end) for i, end in enumerate(ends)]


class Churn:
    """One run of `num_requests` on an engine over a tiny base of `kind`, all below `root`. What is
    isolated runs on the CPU, so that another device is held against it."""

    def __init__(
        self, root: Path, kind: str, num_requests: int, seed: int, *, device: str = "cpu",
        kernels: str = "auto",
    ) -> None:  # fmt: skip
        self._rng = random.Random(seed)
        self._num_requests = num_requests
        self._num_loads = self._num_steps = 0
        self.base_dir = root / "base"
        create_tiny_base(self.base_dir, kind)
        block_bytes = 2 * 3 * 16 * 2 * 32 * 4
        config = EngineConfig(
            self.base_dir, root / "store", dtype="float32", device=device, kernels=kernels,
            max_model_len=128, max_running=16, max_adapters_in_batch=6, max_step_tokens=96,
            kv_bytes=NUM_BLOCKS * block_bytes, adapter_bytes=POOL_BYTES[kind],
            host_adapter_bytes=2 * POOL_BYTES[kind], check_integrity=True,
        )  # fmt: skip
        self._built = build_engine(config, on_adapter_change=self._count_load)
        self._engine = self._built.engine
        self.isolated = Isolated(self.base_dir, root / "all-versions", max_tokens=MAX_TOKENS)
        stores = (FolderStore(root / "store"), self.isolated.store)
        self._population = Population(
            self._built, stores,
            lambda i, folder: save_peft_adapter(self.base_dir, folder, i, **tiny_targets(kind, i)),
            root,
        )  # fmt: skip
        self._prompts = create_prompts(self._rng)
        self.generated: dict[str, Generated] = {}
        self._in_flight: set[str] = set()

    def _count_load(self) -> None:
        self._num_loads += 1

    def warm_up(self) -> None:
        """As a server does before its first request: on a CUDA device, steps are captured."""
        warm_up(self._engine)

    def run(self) -> None:
        """Submit and step until all requests have ended."""
        for i in range(NUM_NAMES):
            self._population.upload(f"name-{i}")
        for i in range(self._num_requests):
            self._change_something()
            self._submit(i)
            while len(self._in_flight) >= MAX_IN_FLIGHT or self._rng.random() < 0.3:
                self._step()
        while self._engine.has_work:
            self._step()
        self._engine.integrity()
        self._built.tiers.close()

    def _change_something(self) -> None:
        names = sorted(self._population.current)
        if self._rng.random() < REPLACE:
            self._population.upload(f"name-{self._rng.randrange(NUM_NAMES)}")
        if self._rng.random() < DELETE and len(names) > NUM_NAMES // 2:
            self._population.delete(self._rng.choice(names))
        if self._rng.random() < ABORT and self._in_flight:
            for output in self._engine.abort(self._rng.choice(sorted(self._in_flight))):
                self._take(output)

    def _submit(self, number: int) -> None:
        names = sorted(self._population.current)
        name = None if self._rng.random() < BASE_SHARE else self._rng.choice(names)
        digest = None if name is None else self._population.current[name]
        sampling = SamplingParams(self._rng.randint(1, MAX_TOKENS), temperature=0, ignore_eos=True)
        # a name is one tenant's; every tenant also asks the base
        owner = number if name is None else int(name.removeprefix("name-"))
        request = EngineRequest(
            str(number), f"tenant-{owner % 3}", self._rng.choice(self._prompts), sampling, digest
        )
        self.generated[request.request_id] = Generated(
            digest, request.prompt_token_ids, sampling.max_tokens
        )
        self._in_flight.add(request.request_id)
        self._engine.add(request)

    def _step(self) -> None:
        if not self._engine.has_work:
            return
        outputs = self._engine.step()
        self._num_steps += 1
        for output in outputs:
            self._take(output)
        self._population.collect({self.generated[i].digest or "" for i in self._in_flight})
        if self._engine.is_stalled:
            time.sleep(0.001)  # all that is left waits for an adapter on its way

    def _take(self, output: EngineOutput) -> None:
        generated = self.generated[output.request_id]
        generated.token_ids += output.token_ids
        generated.num_cached_tokens = output.usage.num_cached_tokens
        if output.finish_reason is not None:
            if output.error is not None:
                raise RuntimeError(f"request {output.request_id}: {output.error}")
            generated.finish_reason = output.finish_reason
            self._in_flight.remove(output.request_id)

    def compare(self) -> Verdicts:
        """Each request's tokens against the isolated run of its version and prompt."""
        verdicts = Verdicts()
        for request_id, got in self.generated.items():
            is_whole = got.finish_reason == "length" and len(got.token_ids) == got.max_tokens
            if not is_whole and got.finish_reason != "abort":
                verdicts.mismatches.append(f"{request_id} ended by {got.finish_reason}")
            self.isolated.judge(verdicts, request_id, got.digest, got.prompt, got.token_ids)
        return verdicts

    def figures(self) -> dict[str, object]:
        generated = self.generated.values()
        return {
            "requests": len(self.generated),
            "aborted": sum(g.finish_reason == "abort" for g in generated),
            "versions": self._population.num_uploads,
            "replaced": self._population.num_replaced,
            "deleted": self._population.num_deleted,
            "loads": self._num_loads,
            "reloads": self._num_loads - len({g.digest for g in generated if g.token_ids} - {None}),
            "preemptions": self._engine.scheduler.num_preemptions,
            "steps": self._num_steps,
            "cached_prompt_tokens": sum(g.num_cached_tokens for g in generated),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=("dense", "moe"), nargs="+", default=["dense", "moe"])
    parser.add_argument("--requests", type=int, default=5000, help="for all bases together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json-dir", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    result: dict[str, object] = {}
    num_mismatches = 0
    for kind in options.base:
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as root:
            churn = Churn(Path(root), kind, options.requests // len(options.base), options.seed)
            started = time.monotonic()
            churn.run()
            report.say(f"{kind}: ran {time.monotonic() - started:.0f} s, comparing")
            verdicts = churn.compare()
            churn.isolated.close()
        result[kind] = churn.figures() | verdicts.figures()
        num_mismatches += len(verdicts.mismatches) + (not verdicts.are_near_ties_rare)
        report.print_figures(f"Churn, {kind} base", churn.figures() | verdicts.figures())
    own = {key: value for key, value in vars(options).items() if key != "json_dir"}
    result["settings"] = report.settings(**own, names=NUM_NAMES, prompts=NUM_PROMPTS)
    report.write_json(options.json_dir, NAME, result)
    if num_mismatches:
        raise SystemExit(f"{num_mismatches} mismatches")


if __name__ == "__main__":
    main()
