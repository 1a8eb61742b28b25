"""Full load on one engine for a long time: memory stays flat, and at the end nothing is left taken.

Requests of mixed lengths and sampling, some with seeds or stop strings, run against adapters that
are uploaded, replaced and deleted all the while; some are aborted, waiting or running. Resident
memory is sampled every second. At the end every block, page and adapter reference must be free.

    python -m benchmarks.soak [--minutes 20] [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.models import TINY_VOCAB_SIZE, create_tiny_base, quiet_libraries, write_adapter
from benchmarks.population import Population

from weft.engine.build import BuiltEngine, build_engine
from weft.engine.config import MIB, EngineConfig
from weft.engine.metrics import take_observations
from weft.engine.req import Req
from weft.messages import EngineOutput, EngineRequest, SamplingParams
from weft_adapters.states import AdapterState
from weft_adapters.store import FolderStore

NAME = "soak"
NUM_NAMES = 24
MAX_IN_FLIGHT = 48
ABORT_SHARE = 0.05
ID_PREFIX = "soak-"
UPLOAD_EVERY_S = 0.2
# the rest, after the caches and allocators have filled, is compared half with half
WARM_UP_SHARE = 0.4
SETTLED = (AdapterState.ABSENT, AdapterState.HOST, AdapterState.DEVICE, AdapterState.FAILED)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def num_live_reqs() -> int:
    """Requests of a soak that something still refers to."""
    gc.collect()
    reqs = [thing for thing in gc.get_objects() if type(thing) is Req]
    return sum(req.request.request_id.startswith(ID_PREFIX) for req in reqs)


@dataclass(slots=True)
class Memory:
    """Resident bytes over time; seconds from the start."""

    samples: list[tuple[float, int]] = field(default_factory=list)

    def _settled(self) -> list[tuple[float, int]]:
        return [s for s in self.samples if s[0] >= WARM_UP_SHARE * self.samples[-1][0]]

    @property
    def window_bytes(self) -> tuple[float, float]:
        """The means of the two halves after warm-up."""
        settled = [num_bytes for _, num_bytes in self._settled()]
        middle = len(settled) // 2
        return sum(settled[:middle]) / middle, sum(settled[middle:]) / (len(settled) - middle)

    @property
    def growth_bytes(self) -> float:
        before, after = self.window_bytes
        return after - before

    @property
    def slope_bytes_per_minute(self) -> float:
        """Least squares over all samples after warm-up."""
        settled = self._settled()
        mean_s = sum(s for s, _ in settled) / len(settled)
        mean = sum(b for _, b in settled) / len(settled)
        across = sum((s - mean_s) * (b - mean) for s, b in settled)
        return 60 * across / sum((s - mean_s) ** 2 for s, _ in settled)

    def assert_flat(self, allowed_bytes: float) -> None:
        assert self.growth_bytes <= allowed_bytes, (
            f"memory grew by {self.growth_bytes / MIB:.1f} MiB from one half to the next, more "
            f"than {allowed_bytes / MIB:.1f}; {self.slope_bytes_per_minute / MIB:.2f} MiB a minute"
        )


class Soak:
    """One run of `duration_s` on an engine over a tiny base of `kind`, all below `root`."""

    def __init__(self, root: Path, kind: str, duration_s: float, seed: int) -> None:
        self._rng = random.Random(seed)
        self._duration_s = duration_s
        base_dir = root / "base"
        create_tiny_base(base_dir, kind)
        block_bytes = 2 * 3 * 16 * 2 * 32 * 4
        config = EngineConfig(
            base_dir, root / "store", dtype="float32", device="cpu",
            max_model_len=192, max_running=24, max_adapters_in_batch=8, max_step_tokens=128,
            kv_bytes=160 * block_bytes, adapter_bytes=2 * MIB, host_adapter_bytes=3 * MIB,
        )  # fmt: skip
        self.built: BuiltEngine = build_engine(config)
        self._engine = self.built.engine
        self._population = Population(
            self.built, [FolderStore(root / "store")], self._save_adapter, root
        )
        self._in_flight: dict[str, str | None] = {}
        self.memory = Memory()
        self.ended: Counter[str] = Counter()
        self.num_requests = self.num_steps = 0

    def _save_adapter(self, number: int, folder: Path) -> None:
        write_adapter(self.built.base, folder, seed=number, rank=(4, 8, 16, 24)[number % 4])

    def run(self) -> None:
        """Load for `duration_s`, then let everything end."""
        for i in range(NUM_NAMES):
            self._population.upload(f"name-{i}")
        started = last_upload = time.monotonic()
        while (now := time.monotonic()) - started < self._duration_s:
            if now - last_upload > UPLOAD_EVERY_S:
                self._change_an_adapter()
                last_upload = now
            while len(self._in_flight) < MAX_IN_FLIGHT:
                self._submit()
            self._step()
            self._sample(now - started)
        while self._engine.has_work:
            self._step()

    def _change_an_adapter(self) -> None:
        names = sorted(self._population.current)
        if self._rng.random() < 0.3 and len(names) > NUM_NAMES // 2:
            self._population.delete(self._rng.choice(names))
        else:
            self._population.upload(f"name-{self._rng.randrange(NUM_NAMES)}")
        self._population.collect({digest or "" for digest in self._in_flight.values()})

    def _sampling(self) -> SamplingParams:
        rng = self._rng
        return SamplingParams(
            rng.randint(1, 64),
            temperature=rng.choice([0, 0.7, 1.0]),
            top_p=rng.choice([0.9, 1.0]),
            top_k=rng.choice([0, 20]),
            seed=rng.choice([None, rng.randrange(1000)]),
            stop=rng.choice([(), ("e",), ("xyz", "ab")]),
            ignore_eos=rng.random() < 0.5,
        )

    def _submit(self) -> None:
        rng = self._rng
        name = rng.choice([None, *sorted(self._population.current)])
        digest = None if name is None else self._population.current[name]
        # half of the prompts begin alike, as prompts of one application do
        shared = list(range(40)) if rng.random() < 0.5 else []
        own = [rng.randrange(TINY_VOCAB_SIZE) for _ in range(rng.randint(1, 80))]
        request_id = f"{ID_PREFIX}{self.num_requests}"
        request = EngineRequest(
            request_id, f"tenant-{rng.randrange(4)}", tuple(shared + own), self._sampling(), digest
        )
        self.num_requests += 1
        self._in_flight[request_id] = digest
        self._engine.add(request)

    def _step(self) -> None:
        outputs = self._engine.step()
        self.num_steps += 1
        for output in outputs:
            self._take(output)
        if self._in_flight and self._rng.random() < ABORT_SHARE:
            for output in self._engine.abort(self._rng.choice(list(self._in_flight))):
                self._take(output)
        if self._engine.is_stalled:
            time.sleep(0.001)  # all that is left waits for an adapter on its way

    def _take(self, output: EngineOutput) -> None:
        if output.finish_reason is not None:
            if output.error is not None:
                raise RuntimeError(f"request {output.request_id}: {output.error}")
            del self._in_flight[output.request_id]
            self.ended[output.finish_reason] += 1

    def _sample(self, now_s: float) -> None:
        if not self.memory.samples or now_s - self.memory.samples[-1][0] >= 1.0:
            take_observations(self._engine.counters, drain=True)  # as whoever scrapes them does
            self.memory.samples.append((now_s, resident_bytes()))

    def assert_nothing_left(self, timeout_s: float = 30.0) -> None:
        """Every block, page and adapter reference is free; every request has ended once."""
        tiers, blocks = self.built.tiers, self._engine.scheduler.blocks
        end = time.monotonic() + timeout_s
        while any(state not in SETTLED for state in tiers.states().values()):
            assert time.monotonic() < end, f"the tiers do not settle: {tiers.states()}"
            time.sleep(0.05)
        assert not self._in_flight
        assert sum(self.ended.values()) == self.num_requests
        assert not self._engine._reqs, "the engine still knows requests"
        assert not self._engine._texts, "the engine still holds texts"
        assert blocks.num_free == blocks.num_usable, "blocks are still taken"
        assert not self._engine.adapters.held, "adapters are still held"
        references = tiers.num_references()
        assert not references, f"adapters are still referred to: {references}"
        assert num_live_reqs() <= MAX_IN_FLIGHT, "requests that have ended are kept in memory"
        self._engine.integrity()

    def figures(self) -> dict[str, object]:
        before, after = self.memory.window_bytes
        return {
            "requests": self.num_requests,
            "ended": dict(sorted(self.ended.items())),
            "steps": self.num_steps,
            "preemptions": self._engine.scheduler.num_preemptions,
            "uploads": self._population.num_uploads,
            "deleted": self._population.num_deleted,
            "resident_mib": [round(before / MIB, 1), round(after / MIB, 1)],
            "versions_known_to_tiers": len(self.built.tiers.states()),
            "growth_mib": self.memory.growth_bytes / MIB,
            "slope_mib_per_minute": self.memory.slope_bytes_per_minute / MIB,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--base", choices=("dense", "moe"), default="moe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-growth-mib", type=float, default=8.0)
    parser.add_argument("--json-dir", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as root:
        soak = Soak(Path(root), options.base, 60 * options.minutes, options.seed)
        soak.run()
        soak.assert_nothing_left()
        soak.built.tiers.close()
    own = {key: value for key, value in vars(options).items() if key != "json_dir"}
    samples = [(round(s, 1), num_bytes) for s, num_bytes in soak.memory.samples]
    report.print_figures("Soak", soak.figures())
    result = {**soak.figures(), "resident_bytes": samples, "settings": report.settings(**own)}
    report.write_json(options.json_dir, NAME, result)
    soak.memory.assert_flat(options.max_growth_mib * MIB)


if __name__ == "__main__":
    main()
