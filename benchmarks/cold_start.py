"""What a warm tenant notices while 100 cold adapters come from S3, over a network that fails.

A store with S3's API and a proxy that delays, slows and breaks its answers run in processes of
their own, on a core of their own where there are two; engine and loader share the others. Warm
requests decode all the time. In the cold arm one request for each cold adapter arrives at once, and
starts when its adapter has come. The control arm has all adapters on the device and starts the same
requests at the times at which they started in the cold arm: both arms compute the same, and differ
by the loading alone. (The proxy has the objects from the store once, before.) Pairs of arms are
repeated; the ratio is the median of theirs.

    python -m benchmarks.cold_start [--json-dir benchmarks/results]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from benchmarks import report
from benchmarks.chaos import served
from benchmarks.models import VOCAB_SIZE, create_dense_base, quiet_libraries, write_adapter

from weft.engine.bench import percentiles
from weft.engine.build import BuiltEngine, build_engine
from weft.engine.config import MIB, EngineConfig
from weft.engine.offline import load_adapters
from weft.messages import EngineOutput, EngineRequest, SamplingParams
from weft.storage.s3 import S3Location, S3Store
from weft_adapters.disk import DiskTier
from weft_adapters.fetch import DownloadedSource
from weft_adapters.pace import LoadSpan
from weft_adapters.sites import BaseSpec
from weft_adapters.store import CONFIG_NAME, TENSORS_NAME
from weft_adapters.validation import validate
from weft_adapters.workers import Cancellation

NAME = "cold_start"
BUCKET = "adapters"
# warm requests decode alone for so long before the cold ones come
_LEAD_S = 0.5
_LIMIT_S = 120.0


@dataclass
class Run:
    """One arm. Times are seconds from the arrival of the cold requests."""

    gaps_s: list[float] = field(default_factory=list)
    started_s: dict[str, float] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0


class Arm:
    """Drives one engine: warm requests all the time, cold ones at their times."""

    def __init__(
        self,
        built: BuiltEngine,
        warm: str,
        arrivals: Mapping[str, float],
        options: argparse.Namespace,
    ) -> None:
        self._engine, self._warm, self._options = built.engine, warm, options
        self._pending = sorted(arrivals.items(), key=lambda item: item[1])
        self._open = set(arrivals)
        self._last_s: dict[str, float] = {}
        self._num_warm = 0
        self._zero_s = time.monotonic() + _LEAD_S
        self.run = Run()

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._zero_s

    def drive(self) -> Run:
        for _ in range(self._options.warm):
            self._add_warm()
        while self._open:
            if self._now_s > _LIMIT_S:
                raise RuntimeError(f"{len(self._open)} requests have not ended")
            while self._pending and self._pending[0][1] <= self._now_s:
                digest, _ = self._pending.pop(0)
                sampling = SamplingParams(1, temperature=0, ignore_eos=True)
                prompt = tuple(range(2, 2 + self._options.prompt))
                self._engine.add(
                    EngineRequest(
                        f"cold-{digest}", f"tenant-{digest[-1]}", prompt, sampling, digest,
                        adapter_timeout_s=self._options.adapter_timeout,
                    )
                )  # fmt: skip
            for output in self._engine.step():
                self._take(output, self._now_s)
        self.run.wall_s = self._now_s
        for request_id in list(self._last_s):
            self._engine.abort(request_id)
        return self.run

    def _add_warm(self) -> None:
        self._num_warm += 1
        sampling = SamplingParams(200, temperature=0, ignore_eos=True)
        prompt = tuple((7 * self._num_warm + i) % VOCAB_SIZE for i in range(16))
        request_id = f"warm-{self._num_warm}"
        self._engine.add(EngineRequest(request_id, "warm", prompt, sampling, self._warm))
        self._last_s[request_id] = 0.0

    def _take(self, output: EngineOutput, now_s: float) -> None:
        if output.request_id.startswith("warm"):
            if output.error is not None:
                raise RuntimeError(f"a warm request failed: {output.error}")
            if now_s > 0 and self._last_s[output.request_id] > 0:
                self.run.gaps_s.append(now_s - self._last_s[output.request_id])
            self._last_s[output.request_id] = now_s
            if output.is_last:
                del self._last_s[output.request_id]
                self._add_warm()
        elif output.is_last:
            digest = output.request_id.removeprefix("cold-")
            self._open.discard(digest)
            self.run.started_s[digest] = now_s
            self.run.ends[output.error_code or "tokens"] += 1


class Bench:
    """A base, adapters in the store, and engines on them."""

    def __init__(self, options: argparse.Namespace, root: Path, server: str, proxy: str) -> None:
        self._options, self._root = options, root
        self._near, self._far = (S3Store(S3Location(BUCKET, ""), url) for url in (server, proxy))
        self._num_built = 0
        self.spans: list[LoadSpan] = []
        create_dense_base(root / "base")

    def upload(self) -> list[str]:
        built = self._build(self._near)
        digests = []
        for seed in range(self._options.adapters + 1):
            folder = self._root / "upload" / str(seed)
            write_adapter(built.base, folder, seed, self._options.rank)
            digests.append(_put(self._near, built.base, folder))
        self._close(built)
        return digests

    def _build(self, store: S3Store) -> BuiltEngine:
        self._num_built += 1
        config = EngineConfig(
            self._root / "base", self._root / "unused", dtype="float32", device="cpu",
            max_model_len=512, max_running=64, max_adapters_in_batch=64,
            kv_bytes=256 * MIB, adapter_bytes=self._options.adapter_mib * MIB,
            host_adapter_bytes=self._options.adapter_mib * MIB,
            disk_dir=self._root / f"disk-{self._num_built}",
            num_threads=self._options.threads,
            loader_cpu_share=self._options.share,
        )  # fmt: skip
        return build_engine(config, remote_store=store)

    def warm_the_store(self, digests: Sequence[str]) -> None:
        """Have the proxy keep all answers: the store itself is a test's, and slow."""
        source = DownloadedSource(self._far, DiskTier(self._root / "first", 2**40))
        for digest in digests:
            source.fetch(digest, Cancellation())
        source.close()

    @staticmethod
    def _close(built: BuiltEngine) -> None:
        built.tiers.close()
        built.engine.grammars.close()

    def run_cold(self, warm: str, cold: Sequence[str]) -> Run:
        built = self._build(self._far)
        load_adapters(built, [warm])
        built.tiers.pace.on_span = self.spans.append
        run = Arm(built, warm, dict.fromkeys(cold, 0.0), self._options).drive()
        self._close(built)
        return run

    def run_control(self, warm: str, arrivals: Mapping[str, float]) -> Run:
        built = self._build(self._near)
        load_adapters(built, [warm, *arrivals])
        run = Arm(built, warm, arrivals, self._options).drive()
        self._close(built)
        return run


def _put(store: S3Store, base: BaseSpec, folder: Path) -> str:
    config = (folder / CONFIG_NAME).read_bytes()
    checked = validate(config, folder / TENSORS_NAME, base, max_rank=256)
    assert checked.digest is not None, checked.faults
    store.put(checked.digest, config, folder / TENSORS_NAME)
    return checked.digest


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    warm, *cold = bench.upload()
    bench.warm_the_store([warm, *cold])
    pairs: list[dict[str, Any]] = []
    ends: Counter[str] = Counter()
    for number in range(options.pairs):
        cold_run = bench.run_cold(warm, cold)
        control = bench.run_control(warm, cold_run.started_s)
        ends += cold_run.ends
        gaps = {"cold": percentiles(cold_run.gaps_s), "control": percentiles(control.gaps_s)}
        pairs.append({
            **gaps,
            "load_s": cold_run.wall_s,
            "p50_ratio": gaps["cold"]["p50"] / gaps["control"]["p50"],
            "p99_ratio": gaps["cold"]["p99"] / gaps["control"]["p99"],
        })  # fmt: skip
        report.say(
            f"pair {number + 1}: loaded in {cold_run.wall_s:.1f} s, warm p50 "
            f"{pairs[-1]['p50_ratio']:.3f}x, p99 {pairs[-1]['p99_ratio']:.3f}x of the control"
        )
    in_steps = [span for span in bench.spans if span.thread_id == threading.get_ident()]
    assert not in_steps, f"{len(in_steps)} pieces of loading ran in the engine's thread"
    return {
        "p50_ratio": statistics.median(pair["p50_ratio"] for pair in pairs),
        "p99_ratio": statistics.median(pair["p99_ratio"] for pair in pairs),
        "ends": dict(ends),
        "pieces_of_loading": dict(Counter(span.kind for span in bench.spans)),
        "pieces_in_the_engine_thread": len(in_steps),
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--warm", type=int, default=4, help="warm requests at a time")
    parser.add_argument("--prompt", type=int, default=8, help="tokens of a cold request")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--share", type=float, default=None, help="of a core, for loading")
    parser.add_argument("--threads", type=int, default=0, help="the engine's; 0: a core each")
    parser.add_argument("--adapter-timeout", type=float, default=60.0)
    parser.add_argument("--adapter-mib", type=int, default=256)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--gb-per-s", type=float, default=1.0)
    parser.add_argument("--faults", type=float, default=0.1, help="share of faulty answers")
    parser.add_argument("--json-dir", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "bench")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "bench")
    cores = sorted(os.sched_getaffinity(0))
    own = cores[: max(1, len(cores) - 1)]
    options.threads = options.threads or len(own)
    os.sched_setaffinity(0, cores[len(own) :] or cores)
    chaos = ["--latency-ms", str(options.latency_ms), "--gb-per-s", str(options.gb_per_s)]
    with (
        served([]) as server,
        served(["--upstream", server, "--keep", *chaos, "--faults", str(options.faults)]) as proxy,
        tempfile.TemporaryDirectory(prefix="weft-bench-") as root,
    ):
        os.sched_setaffinity(0, own)
        boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(
            Bucket=BUCKET
        )
        result = measure(Bench(options, Path(root), server, proxy), options)
    settings = {key: value for key, value in vars(options).items() if key != "json_dir"}
    result["settings"] = report.settings(**settings, model="qwen3 dense, hidden 512")
    report.print_figures(
        "Cold start", {k: v for k, v in result.items() if k not in ("pairs", "settings")}
    )
    report.write_json(options.json_dir, NAME, result)


if __name__ == "__main__":
    main()
