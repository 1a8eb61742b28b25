"""Prometheus metrics under vLLM's names, so that boards made for it work here.

Labels are the base's name and small fixed sets: never a tenant, key or request. Adapters go by
their digests, which say nothing of whose they are or what they are called.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from weft.gateway.adapter_metrics import adapter_families
from weft.limits.limiter import Dimension
from weft.limits.subjects import SubjectKind
from weft.messages import EngineClient, EngineStats, FinishReason

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
            10.0, 20.0, 40.0, 80.0)  # fmt: skip
_HISTOGRAMS = {
    "time_to_first_token": ("vllm:time_to_first_token_seconds", "Admission to first token."),
    "inter_token_latency": ("vllm:inter_token_latency_seconds", "Between two tokens."),
    "queue_time": ("vllm:request_queue_time_seconds", "Admission to first step."),
    "adapter_load_time": ("weft_adapter_load_seconds", "First request to the adapter's arrival."),
}


class GatewayMetrics:
    """Of the requests that one process has taken, in a registry of their own."""

    def __init__(self, base_name: str) -> None:
        self._base = base_name
        self._registry = CollectorRegistry()
        self._finished = Counter(
            "vllm:request_success",
            "Requests that came to an end, by how.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._finished_by_reason: dict[FinishReason, Counter] = {}
        self._e2e = _histogram(
            self._registry, base_name, "vllm:e2e_request_latency_seconds", "Admission to end."
        )
        self._write_failures = Counter(
            "weft_usage_write_failures",
            "Attempts to write a request's usage that failed; each is tried again.",
            registry=self._registry,
        )
        self._limited = Counter(
            "weft_requests_limited",
            "Requests refused by a rate limit, by whose it is and what of.",
            ("subject", "limit"),
            registry=self._registry,
        )
        self._limiter_failures = Counter(
            "weft_limiter_failures",
            "Questions to the limiter that it did not answer.",
            registry=self._registry,
        )

    def request_finished(self, reason: FinishReason, elapsed_s: float) -> None:
        counter = self._finished_by_reason.get(reason)
        if counter is None:  # to find one by its labels takes as long as all the rest
            counter = self._finished_by_reason[reason] = self._finished.labels(self._base, reason)
        counter.inc()
        self._e2e.observe(elapsed_s)

    def usage_write_failed(self) -> None:
        self._write_failures.inc()

    def request_limited(self, subject: SubjectKind, dimension: Dimension) -> None:
        self._limited.labels(subject, dimension).inc()

    def limiter_failed(self) -> None:
        self._limiter_failures.inc()

    def include(self, collector: Collector) -> None:
        """Tell what `collector` has with the rest."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self._registry)


def _histogram(registry: CollectorRegistry, base_name: str, name: str, text: str) -> Histogram:
    family = Histogram(name, text, ("model_name",), buckets=_SECONDS, registry=registry)
    return family.labels(base_name)


class EngineMetrics:
    """Of one engine; one process scrapes it, as its observations are given out once."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._base = engine.info.base_name
        self._registry = CollectorRegistry()
        self._observed = {
            key: _histogram(self._registry, self._base, name, text)
            for key, (name, text) in _HISTOGRAMS.items()
        }
        self._families = _Families()
        self._registry.register(self._families)

    async def render(self) -> bytes:
        """The text exposition; takes the engine's observations since the last call."""
        stats, placements = await self._engine.stats(drain=True), await self._engine.placements()
        for key, values in stats.histograms.items():
            histogram = self._observed.get(key)
            if histogram is not None:
                for value in values:
                    histogram.observe(value)
        self._families.families = [
            *_stats_families(stats, self._base),
            *adapter_families(stats, placements, self._engine.info),
        ]
        return generate_latest(self._registry)


class _Families(Collector):
    """What the engine was asked for a moment ago."""

    def __init__(self) -> None:
        self.families: Sequence[Metric] = ()

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def _stats_families(stats: EngineStats, base: str) -> Iterator[Metric]:
    """Gauges and counters that the engine keeps itself."""
    for name, text, value in _gauges(stats):
        gauge = GaugeMetricFamily(name, text, labels=("model_name",))
        gauge.add_metric((base,), value)
        yield gauge
    for name, text, value in (
        ("vllm:prompt_tokens", "Prompt tokens.", stats.num_prompt_tokens),
        ("vllm:generation_tokens", "Generated tokens.", stats.num_generation_tokens),
        ("vllm:num_preemptions", "Preempted requests.", stats.num_preemptions),
        ("weft_pauses", "Requests that paused for adapters to take turns.", stats.num_pauses),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.num_prompt_tokens),
        (
            "vllm:prefix_cache_hits",
            "Prompt tokens found in the prefix cache.",
            stats.num_cached_prompt_tokens,
        ),
    ):
        counter = CounterMetricFamily(name, text, labels=("model_name",))
        counter.add_metric((base,), value)
        yield counter
    states = GaugeMetricFamily("weft_adapters", "Known versions by tier.", labels=("state",))
    for state, count in sorted(Tally(stats.adapter_states.values()).items()):
        states.add_metric((state,), count)
    yield states


def _gauges(stats: EngineStats) -> tuple[tuple[str, str, float], ...]:
    num_used = stats.num_blocks_total - stats.num_blocks_free
    return (
        ("vllm:num_requests_running", "Requests in the batch.", stats.num_running),
        ("vllm:num_requests_waiting", "Requests in the queue.", stats.num_waiting),
        (
            "vllm:kv_cache_usage_perc",
            "Used part of the KV cache, 0 to 1.",
            num_used / max(stats.num_blocks_total, 1),
        ),
        ("weft_adapter_pool_pages", "Pages of the adapter pool.", stats.num_pages_total),
        ("weft_adapter_pool_free_pages", "Free pages of the pool.", stats.num_pages_free),
        ("weft_adapters_running", "Adapters in the batch.", len(stats.running_adapters)),
        ("weft_adapters_waiting", "Adapters waited for.", len(stats.waiting_adapters)),
    )
